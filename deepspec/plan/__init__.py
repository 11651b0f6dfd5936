"""The plan: what a run is asked to do, what it will cost, and the specs that it resolves to."""
