"""What computes where matrix products do not: torch's functions, or on CUDA kernels in Triton."""

from importlib.util import find_spec
from typing import Literal

import torch

Kernel = Literal["torch", "triton"]
"""What works between products and steps weights: results differ by rounding."""


def kernel_of(device: torch.device) -> Kernel:
    """Return what computes on a device: Triton on CUDA, where it is installed."""
    return "triton" if device.type == "cuda" and find_spec("triton") is not None else "torch"
