"""Rows of JSON, JSONL and parquet: read line by line, checked, and refused by number."""
