"""Targets and drafts in memory or on disk, batches that drafts learn from, and what is decoded with them."""
