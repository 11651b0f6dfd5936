"""Reads GGUF files: the fields and tensors of version 3, little-endian.

The `gguf` package reads them too, but takes seconds for a vocabulary of 50 000; and a proof should not read with the
library that wrote.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepspec.errors import CheckpointError

STRING, ARRAY = 8, 9
"""Types that are not plain numbers."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a field -> its code in `struct`."""

_TENSORS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 27: np.dtype("<i8"), 30: np.dtype("<i2")}
"""Types of tensors that a draft holds: F32, I64, BF16 (as its bits)."""

_BF16 = 30


@dataclass(frozen=True, slots=True)
class Field:
    """One field."""

    value: Any
    kind: int
    inner: int | None
    """Type of the items of an array."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file holds."""

    fields: dict[str, Field]
    tensors: dict[str, Tensor]
    """Empty where only the fields were asked for."""

    def value(self, name: str) -> Any:
        """Return the value of a field.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self.fields:
            raise CheckpointError(f"the GGUF file has no {name!r}")
        return self.fields[name].value


def read_gguf(path: Path, *, tensors: bool) -> GgufFile:
    """Return the fields of a file and, where asked for, its tensors.

    Raises:
        CheckpointError: no GGUF file of version 3, cut off, or tensors of a type that drafts do not have.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data, path).read(tensors)
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error


class _Cursor:
    """Walks through the bytes."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def read(self, with_tensors: bool) -> GgufFile:
        magic, version, tensor_count, field_count = self._unpack("4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise CheckpointError(f"{self._path} is no GGUF file of version 3")
        fields = {self._string(): self._field() for _ in range(field_count)}
        if not with_tensors:
            return GgufFile(fields, {})
        told = [(self._string(), self._shape(), *self._unpack("IQ")) for _ in range(tensor_count)]
        step = fields["general.alignment"].value if "general.alignment" in fields else 32
        start = -(-self._at // step) * step
        return GgufFile(fields, {name: self._tensor(shape, kind, start + at) for name, shape, kind, at in told})

    def _unpack(self, codes: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{codes}", self._data, self._at)
        self._at += struct.calcsize(f"<{codes}")
        return found

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _field(self) -> Field:
        (kind,) = self._unpack("I")
        if kind != ARRAY:
            return Field(self._one(kind), kind, None)
        inner, count = self._unpack("IQ")
        if inner == STRING:
            return Field([self._string() for _ in range(count)], kind, inner)
        return Field(list(self._unpack(f"{count}{self._code(inner)}")), kind, inner)

    def _one(self, kind: int) -> Any:
        return self._string() if kind == STRING else self._unpack(self._code(kind))[0]

    def _code(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise CheckpointError(f"{self._path}: fields of type {kind} are unknown")
        return _NUMBERS[kind]

    def _shape(self) -> list[int]:
        (axes,) = self._unpack("I")
        return list(reversed(self._unpack(f"{axes}Q")))

    def _tensor(self, shape: list[int], kind: int, start: int) -> Tensor:
        if kind not in _TENSORS:
            raise CheckpointError(f"{self._path}: tensors of type {kind}; a draft holds F32, BF16 and I64")
        count = int(np.prod(shape))
        found: npt.NDArray[Any] = np.frombuffer(self._data, _TENSORS[kind], count, start).copy()
        tensor = torch.from_numpy(found).reshape(shape)
        return tensor.view(torch.bfloat16) if kind == _BF16 else tensor
