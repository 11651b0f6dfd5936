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

Bytes = NDArray[np.uint8]


class Codec(Protocol):
    """One way to store states."""

    def encode(self, states: Sequence[Tensor]) -> list[Bytes]:
        """Return the block of `(R, D)` bf16 states, which come and may go in several pieces."""

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Return the `(rows, width)` bf16 states of a block."""


class Raw:
    """bf16 as it is: reading copies nothing."""

    def encode(self, states: Sequence[Tensor]) -> list[Bytes]:
        """Return the little-endian bytes."""
        return [_bytes(piece) for piece in states]

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Return a view of the block."""
        return torch.from_numpy(block).view(torch.bfloat16).view(rows, width)


class Lossless:
    """bf16 with the exponents compressed: they take few values, while sign and mantissa are noise.

    A block is one zstd frame of the exponent bytes, then the bytes of mantissa and sign as they are.
    """

    def encode(self, states: Sequence[Tensor]) -> list[Bytes]:
        """Split each value, rotated left by one bit, into exponent and the rest."""
        words = _bytes(torch.cat(list(states))).view(np.uint16)
        rotated = (words << 1) | (words >> 15)
        return [_compressed((rotated >> 8).astype(np.uint8)), rotated.astype(np.uint8)]

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

    def encode(self, states: Sequence[Tensor]) -> list[Bytes]:
        """Scale each row below the largest e4m3 value, and round."""
        values = torch.cat(list(states)).float()
        exponents = torch.frexp(values.abs().amax(dim=1) / _FP8_MAX).exponent
        scaled = torch.ldexp(values, -exponents[:, None]).to(torch.float8_e4m3fn)
        return [_compressed(np.concatenate([_bytes(exponents.to(torch.int8)), _bytes(scaled)]))]

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:
        """Scale back; e4m3 times a power of two is a bf16 value."""
        data = torch.from_numpy(_decompressed(block, rows * (width + 1)))
        exponents = data[:rows].view(torch.int8)
        scaled = data[rows:].view(torch.float8_e4m3fn).view(rows, width)
        return torch.ldexp(scaled.float(), exponents[:, None].int()).to(torch.bfloat16)


class Nothing:
    """No states: the block is empty. Who trains computes them."""

    def encode(self, states: Sequence[Tensor]) -> list[Bytes]:  # noqa: ARG002 - a codec's interface
        """Return no bytes."""
        return []

    def decode(self, block: Bytes, rows: int, width: int) -> Tensor:  # noqa: ARG002 - a codec's interface
        """Return zeros."""
        return torch.zeros(rows, width, dtype=torch.bfloat16)


TOKENS_ONLY = "none"
"""Name of the codec that stores no states."""

CODECS: Mapping[str, Codec] = {"bf16": Raw(), "bf16-zstd": Lossless(), "fp8": Float8(), TOKENS_ONLY: Nothing()}
"""Name in a spec and in every part -> codec."""


def _bytes(values: Tensor) -> Bytes:
    array: Bytes = values.contiguous().view(torch.uint8).numpy().reshape(-1)
    return array


def _compressed(data: Bytes) -> Bytes:
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(data).data)
    return np.frombuffer(frame, dtype=np.uint8)


def _decompressed(frame: Bytes, size: int) -> Bytes:
    data = zstandard.ZstdDecompressor().decompress(np.ascontiguousarray(frame).data, max_output_size=size)
    return np.frombuffer(bytearray(data), dtype=np.uint8)
