"""Rotary position embeddings of the kinds that Hugging Face configs name.

Legend: B batch, T positions, d head size.
"""

import math

import torch
from torch import Tensor, nn

from deepspec.families.shape import Rope


class RotaryEmbedding(nn.Module):
    """Turns positions into the cosines and sines that rotate queries and keys."""

    def __init__(self, rope: Rope, head_dim: int) -> None:
        """Compute the frequencies once; they are no part of a checkpoint."""
        super().__init__()
        self._factor = rope.attention_factor
        self._frequencies = {torch.device("cpu"): inverse_frequencies(rope, head_dim)}
        """Per device, and no buffer: they stay fp32 whatever the model is cast to."""

    def forward(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin.

        Args:
            positions_BT: int64.
            dtype: of the result; angles are computed in fp32.

        Returns:
            two tensors `(B, 1, T, r)`, r the number of rotated sizes of a head.
        """
        angles_BTr = positions_BT[..., None].float() * self._on(positions_BT.device)
        angles_B1Tr = torch.cat((angles_BTr, angles_BTr), dim=-1)[:, None]
        return (angles_B1Tr.cos() * self._factor).to(dtype), (angles_B1Tr.sin() * self._factor).to(dtype)

    @property
    def frequencies(self) -> Tensor:
        """Return the angle per position of each pair of sizes, `(r / 2,)` on the CPU, the fastest first."""
        return self._frequencies[torch.device("cpu")]

    def bring_to(self, device: torch.device) -> None:
        """Hold the frequencies on a device: code that is compiled before they lie there is compiled a second time."""
        self._on(device)

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._frequencies:
            self._frequencies[device] = self._frequencies[torch.device("cpu")].to(device)
        return self._frequencies[device]


def rotate(x_BHTd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys rotated by (cos, sin); the sizes of a head beyond r are left as they are."""
    cos, sin = rotation
    size = cos.shape[-1]
    turned, rest = x_BHTd[..., :size], x_BHTd[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Return the angle per position of each pair of sizes.

    Returns:
        `(r / 2,)` fp32. "proportional" rotates the whole head, the later pairs by 0.
    """
    if rope.kind == "proportional":
        return _proportional(rope, head_dim)
    size = int(head_dim * rope.rotary_share)
    plain = 1.0 / rope.theta ** (torch.arange(0, size, 2, device="cpu").float() / size)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain)
    return plain


def _proportional(rope: Rope, head_dim: int) -> Tensor:
    """Gemma 4: the first pairs rotate at the frequencies of the whole head, the others not at all."""
    rotated = int(rope.rotary_share * head_dim // 2)
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)
    plain[rotated:] = 0
    return plain / rope.factor


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated."""
    length = _original_positions(rope)
    turns = length * plain / (2 * math.pi)
    keep = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return plain * (keep + (1 - keep) / rope.factor)


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """YaRN (arXiv 2309.00071): a ramp over the dimensions between stretched and kept frequencies."""
    size = 2 * len(plain)
    length = _original_positions(rope)

    def dimension(turns: float) -> float:
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = ((torch.arange(len(plain), device="cpu").float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / rope.factor * ramp


def _original_positions(rope: Rope) -> int:
    if rope.original_positions is None:
        raise ValueError(f"rope of kind {rope.kind!r} needs original_positions; families/rope.py fills it in")
    return rope.original_positions
