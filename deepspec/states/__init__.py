"""States that an engine gives: what is wanted of it, where they lie, and the proof that they are the target's."""
