"""Artifacts as stages publish them, and the runs that make them."""
