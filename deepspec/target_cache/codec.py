"""How hidden states become bytes: one block per sample, readable on its own with one range request.

States are bf16 rows of the target's hidden size: `(R, D)`. See docs/formats/target_cache.md.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

_LEVEL = 1
"""Of zstd. Higher levels search for matches that are not there: larger and slower on states."""

_FP8_MAX = 448.0
"""Largest finite value of e4m3."""

_LEAST = -126
"""Exponent of a row, at least: of smaller ones the scale is not finite, and none fits into a byte below -128."""

PIECE = 1 << 24
"""Values of a sample that are scaled at a time: they lie there twice in fp32, beside the target on its card."""

Bytes = NDArray[np.uint8]


class Codec(Protocol):
    """One way to store states, in two halves: where they lie, and where they are written."""

    def planes(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return what has to reach the host of `(R, D)` bf16 states, which come in several pieces: uint8, where they
        lie, the same on every device.
        """

    def packed(self, planes: Sequence[Bytes]) -> list[Bytes]:
        """Return the block of the planes, in the host's memory; it may be in several pieces."""

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Return the `(rows, width)` bf16 states of a block."""


def encode(codec: Codec, states: Sequence[Tensor]) -> list[Bytes]:
    """Return the block of states in the host's memory: `(R, D)` bf16, in several pieces."""
    return codec.packed([plane.numpy() for plane in codec.planes(states)])


class Raw:
    """bf16 as it is: reading copies nothing."""

    def planes(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the little-endian bytes."""
        return [_bytes(piece) for piece in states]

    def packed(self, planes: Sequence[Bytes]) -> list[Bytes]:
        """Return them as they are."""
        return list(planes)

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Return a view of the block."""
        return torch.from_numpy(block).view(torch.bfloat16).view(rows, width)


class Lossless:
    """bf16 with the exponents compressed: they take few values, while sign and mantissa are noise.

    A block is one zstd frame of the exponent bytes, then the bytes of mantissa and sign as they are.
    """

    def planes(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Split each value, rotated left by one bit, into exponent and the rest."""
        values = torch.cat(list(states))
        if values.device.type == "cpu":  # numpy does it in half of torch's time
            words = _bytes(values).numpy().view(np.uint16)
            rotated = (words << 1) | (words >> 15)
            return [torch.from_numpy((rotated >> 8).astype(np.uint8)), torch.from_numpy(rotated.astype(np.uint8))]
        return split_by_torch(values)

    def packed(self, planes: Sequence[Bytes]) -> list[Bytes]:
        """Compress the exponents."""
        exponents, rest = planes
        return [_compressed(exponents), rest]

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Join both and rotate back."""
        split = len(block) - rows * width
        rotated = _decompressed(block[:split], rows * width).astype(np.uint16) << 8
        rotated |= block[split:]
        words = (rotated >> 1) | (rotated << 15)
        return torch.from_numpy(words.view(np.int16)).view(torch.bfloat16).view(rows, width)


class Float8:
    """e4m3 with one power of two per row as its scale, so that scaling itself rounds nothing; then zstd.

    A block is one zstd frame of the rows' exponents (int8) and the e4m3 bytes. The largest relative error of a value
    is 1/16 above 2^-15 of its row's largest.
    """

    def planes(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Scale each row below the largest e4m3 value, and round."""
        pieces = [piece for each in states for piece in each.split(max(1, PIECE // each.shape[1]))]
        exponents, scaled = zip(*(_scaled(piece) for piece in pieces), strict=True)
        return [torch.cat(exponents), torch.cat(scaled)]

    def packed(self, planes: Sequence[Bytes]) -> list[Bytes]:
        """Compress both together."""
        return [_compressed(np.concatenate(planes))]

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Scale back; e4m3 times a power of two is a bf16 value."""
        data = torch.from_numpy(_decompressed(block, rows * (width + 1)))
        exponents = data[:rows].view(torch.int8)
        scaled = data[rows:].view(torch.float8_e4m3fn).view(rows, width)
        return torch.ldexp(scaled.float(), exponents[:, None].int()).to(torch.bfloat16)


class Nothing:
    """No states: the block is empty. Who trains computes them."""

    def planes(self, states: Sequence[Tensor]) -> list[Tensor]:  # noqa: ARG002 - a codec's interface
        """Return nothing."""
        return []

    def packed(self, planes: Sequence[Bytes]) -> list[Bytes]:  # noqa: ARG002 - a codec's interface
        """Return no bytes."""
        return []

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:  # noqa: ARG002 - a codec's interface
        """Return zeros."""
        return torch.zeros(rows, width, dtype=torch.bfloat16)


TOKENS_ONLY = "none"
"""Name of the codec that stores no states."""

CODECS: Mapping[str, Codec] = {"bf16": Raw(), "bf16-zstd": Lossless(), "fp8": Float8(), TOKENS_ONLY: Nothing()}
"""Name in a spec and in every part -> codec."""


def split_by_torch(values: Tensor) -> list[Tensor]:
    """Return exponents, and mantissas with signs, of bf16 values where they lie: what `Lossless` keeps on a card."""
    signed = values.view(torch.int16)
    pairs = ((signed << 1) | ((signed >> 15) & 1)).view(torch.uint8).view(-1, 2)  # little-endian: the rest comes first
    return [pairs[:, 1].contiguous(), pairs[:, 0].contiguous()]


def _scaled(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bytes of the rows' exponents, and those of their values."""
    values = states.float()
    exponents = torch.frexp(values.abs().amax(dim=1) / _FP8_MAX).exponent.clamp(min=_LEAST)
    scaled = (values * _power_of_two(-exponents[:, None])).to(torch.float8_e4m3fn)
    return _bytes(exponents.to(torch.int8)), _bytes(scaled)


def _power_of_two(exponents: Tensor) -> Tensor:
    """Return 2 to the exponents, of -126 to 127, in fp32 and by its bits.

    `torch.ldexp` takes a power, which a card may give an ulp off: what lies between two values would round otherwise.
    """
    return ((exponents.int() + 127) << 23).view(torch.float32)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).reshape(-1)


def _compressed(data: Bytes) -> Bytes:
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(data).data)
    return np.frombuffer(frame, dtype=np.uint8)


def _decompressed(frame: Bytes, size: int) -> Bytes:
    data = zstandard.ZstdDecompressor().decompress(np.ascontiguousarray(frame).data, max_output_size=size)
    return np.frombuffer(bytearray(data), dtype=np.uint8)
