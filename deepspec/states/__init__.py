"""States that an engine gives: asked by token ids, checked, proven, and made what a capture would have made."""
