"""What elementwise functions keep for the backward pass: their inputs, and nothing between.

torch's own norm on a CPU keeps its input in fp32, and a gated activation keeps what it multiplies. Both are computed
again in the backward pass instead, which costs next to nothing beside the products around them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from torch.utils.checkpoint import checkpoint

from deepspec.families.shape import BlockShape


def lean(function: Callable[..., Tensor], *inputs: Tensor, wide: bool = False) -> Tensor:
    """Return what a function without random choices gives; on a CPU only its inputs are kept for the backward pass.

    Elsewhere the kernels of norms keep no wide copies, and each checkpoint would cost launches; compiled code has none.

    Args:
        function: elementwise.
        inputs: its inputs.
        wide: whether what it gives is much wider than a state, so that compiled code does not keep it either.
    """
    forgets = inputs[0].device.type == "cpu" or (wide and torch.compiler.is_compiling())
    if not torch.is_grad_enabled() or not forgets:
        return function(*inputs)
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


class RMSNorm(nn.RMSNorm):
    """torch's norm, which keeps its input in its own dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `(…, D)`."""
        return lean(super().forward, x, wide=True)


class OffsetRMSNorm(RMSNorm):
    """A norm that multiplies by 1 + its weight, in fp32 whatever the model is cast to."""

    def __init__(self, size: int, eps: float) -> None:
        """Begin as a norm that multiplies by 1."""
        super().__init__(size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(…, D)`."""
        return lean(self._offset, x, wide=True)

    def _offset(self, x: Tensor) -> Tensor:
        return rms_norm(x.float(), self.normalized_shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


def norm_of(shape: BlockShape, size: int) -> RMSNorm:
    """Return a norm over so many sizes, of the kind that a block has."""
    return (OffsetRMSNorm if shape.offset_norms else RMSNorm)(size, shape.norm_eps)
