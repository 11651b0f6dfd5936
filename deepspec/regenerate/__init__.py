"""Regenerate: the target's own answers to every prompt, asked from one or more engines, none lost and none twice."""
