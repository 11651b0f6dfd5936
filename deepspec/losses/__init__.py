"""Losses of the draft by chunks of rows, as torch computes them and as Triton does on CUDA."""
