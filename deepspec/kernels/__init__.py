"""Kernels in Triton, each the twin of something that torch does on a CPU; imported only where they run."""
