"""Tests on a stand-in for a GPU, in processes of their own: see `tests/test_elsewhere.py`."""
