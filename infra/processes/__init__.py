"""Child processes that end with their parent: the guard, and how it is started."""
