"""DFlash 2's local convolution: a block of slots mixes each sublayer's input and output over neighbouring slots.

    out[k, c] = Σ_t (base[side, t, c] + δ[k, side, t, c // G]) · x[k − t, c]     side 0 before the sublayer, 1 behind it

Taps before the block's first slot are dropped, so it is causal. δ is a projection of the sublayer's normed input at
slot k. Only slots are convolved: the keys and values of the context are not.

Legend: B batch, Q slots of all blocks, N blocks, K slots of one, D hidden size, G channels of a group.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deepspec.attention.attention import Context, Mask, Rotation
from deepspec.attention.lean import lean
from deepspec.families.shape import BlockShape
from deepspec.models.block import Block

SIDES = 2


class SlotConvolution(nn.Module):
    """The convolution around one sublayer."""

    def __init__(self, size: int, taps: int, group: int, slots: int) -> None:
        """Make kernels of so many taps, whose dynamic part groups of channels share; `slots` are those of a block."""
        super().__init__()
        self.base_kernel = nn.Parameter(torch.zeros(SIDES, taps, size))
        self.kernel_projection = nn.Linear(size, SIDES * taps * (size // group), bias=False)
        self._taps, self._group, self._slots = taps, group, slots

    def kernels(self, normed_BQD: Tensor) -> Tensor:
        """Return δ of each slot, `(B, Q, 2, τ, D / G)`, of the sublayer's normed input."""
        dynamic: Tensor = self.kernel_projection(normed_BQD)
        return dynamic.view(*normed_BQD.shape[:2], SIDES, self._taps, -1)

    def forward(self, x_BQD: Tensor, kernels: Tensor, side: int) -> Tensor:
        """Return what a side makes of slots, `(B, Q, D)`; taps of every channel are not kept for the backward pass."""
        return lean(partial(self._mix, side), x_BQD, kernels)

    def _mix(self, side: int, x_BQD: Tensor, kernels: Tensor) -> Tensor:
        batch, queries, size = x_BQD.shape
        slots = min(self._slots, queries)  # decoding may propose fewer than a block
        x_BNKD = x_BQD.view(batch, -1, slots, size)
        taps = self.base_kernel[side] + kernels[:, :, side].repeat_interleave(self._group, dim=-1)
        own = taps.view(batch, -1, slots, self._taps, size)
        out = own[..., 0, :] * x_BNKD
        for tap in range(1, min(self._taps, slots)):
            out = out + own[..., tap, :] * pad(x_BNKD, (0, 0, tap, 0))[:, :, :slots]
        return out.flatten(1, 2)


class ConvolvedBlock(Block):
    """A decoder block whose sublayers are convolved over the slots of each block of drafts."""

    def __init__(self, shape: BlockShape, *, taps: int, group: int, slots: int) -> None:
        """Make the block and its two convolutions."""
        super().__init__(shape)
        self.attention_conv = SlotConvolution(shape.hidden_size, taps, group, slots)
        self.mlp_conv = SlotConvolution(shape.hidden_size, taps, group, slots)

    def forward(self, x_BQD: Tensor, rotation: Rotation, context: Context, mask: Mask) -> Tensor:
        """Return the output for blocks of slots that see a cached context and, after it, their own block."""
        normed = self.input_layernorm(x_BQD)
        kernels = self.attention_conv.kernels(normed)
        mixed = self.attention_conv(normed, kernels, 0)
        seen = context.append(self.self_attn.keys_values(mixed, rotation))
        x_BQD = x_BQD + self.attention_conv(self.self_attn(mixed, rotation, seen, mask), kernels, 1)
        normed = self.post_attention_layernorm(x_BQD)
        kernels = self.mlp_conv.kernels(normed)
        out: Tensor = x_BQD + self.mlp_conv(self.mlp(self.mlp_conv(normed, kernels, 0)), kernels, 1)
        return out
