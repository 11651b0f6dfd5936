"""Where a carrier leaves states and a run fetches them: a store, or the memory of the engine's machine."""
