"""Attention of a draft's block, its rotary positions, and the kernels and products that compute it."""
