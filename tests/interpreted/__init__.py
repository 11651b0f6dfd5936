"""Tests that Triton's interpreter runs on the CPU, in a process of their own: see `tests/test_loss_kernel.py`."""
