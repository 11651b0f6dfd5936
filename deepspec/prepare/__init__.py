"""Prepare: many files and datasets become one clean, split list of prompts; every dropped row is counted."""
