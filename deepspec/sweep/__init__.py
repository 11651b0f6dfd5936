"""Drafts that differ in some settings, held against each other: what is said of a row, and what comes of the rows."""
