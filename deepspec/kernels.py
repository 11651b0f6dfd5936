"""What computes where matrix products do not: torch's functions, or on CUDA kernels in Triton; the stream beside."""

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

Kernel = Literal["torch", "triton"]
"""What works between products and steps weights: results differ by rounding."""


def kernel_of(device: torch.device) -> Kernel:
    """Return what computes on a device: Triton on CUDA, where it is installed."""
    return "triton" if device.type == "cuda" and find_spec("triton") is not None else "torch"


@cache
def stream_beside(device: torch.device, what: str) -> torch.cuda.Stream:
    """Return a stream of a card beside the one that computes, the same for as long as a process lives.

    Memory that was taken on a stream is given to that stream alone when it is free again. torch hands out 32 of them in
    turn, so with a new one for each step a card would keep the states of 32 steps.

    Args:
        device: the card.
        what: is done on it; each has its own.
    """
    del what
    return torch.cuda.Stream(device)
