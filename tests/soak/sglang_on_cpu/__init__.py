"""What stands in for SGLang's kernels where there is no card: none of it is SGLang's code.

This folder is on the path of the server's Python, so `sgl_kernel` is found there as SGLang imports it.
"""
