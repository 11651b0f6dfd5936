"""Tiny targets on disk: one that most tests use, those that ship heads, and one of every type."""
