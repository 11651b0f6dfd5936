"""Benchmark: the wall clock of speculative against plain decoding, on this hardware."""
