"""Asking a target for answers: conversations turn by turn, each engine in its own words, its replies judged."""
