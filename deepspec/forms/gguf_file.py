"""Reads GGUF files, the fields and tensors of version 3, little-endian; and writes what drafts have in common.

The `gguf` package reads them too, but takes seconds for a vocabulary of 50 000; and a proof should not read with the
library that wrote.
"""

import mmap
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
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
class TensorPlace:
    """Where a tensor lies in a file, whatever its type."""

    shape: list[int]
    kind: int
    at: int


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


def read_gguf(path: Path, *, tensors: bool, but: Collection[str] = ()) -> GgufFile:
    """Return the fields of a file and, where asked for, its tensors but those of some names.

    Raises:
        CheckpointError: no GGUF file of version 3, cut off, or tensors of a type that drafts do not have.
    """
    with _opened(path) as data:
        return _Cursor(data, path).read(tensors, but)


def copy_field(writer: Any, name: str, field: Field) -> None:
    """Write a field that was read."""
    inner = None if field.inner is None else gguf.GGUFValueType(field.inner)
    writer.add_key_value(name, field.value, gguf.GGUFValueType(field.kind), inner)


def copy_tensor(writer: Any, path: Path, name: str, place: TensorPlace) -> None:
    """Write a tensor of another file, in its own type: not even a quantised one is computed again.

    Raises:
        CheckpointError: of a type that is unknown here.
    """
    try:
        kind = gguf.GGMLQuantizationType(place.kind)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name} is of type {place.kind}, which is unknown here") from error
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows = (*place.shape[:-1], place.shape[-1] // values * size)
    writer.add_tensor(name, np.memmap(path, np.uint8, "r", place.at, rows), raw_dtype=kind)


def add_tensor(writer: Any, name: str, tensor: Tensor) -> None:
    """Write a tensor: matrices in bf16 where they are bf16, everything else in fp32 (d2t in int64)."""
    if tensor.dtype == torch.int64:
        writer.add_tensor(name, tensor.numpy())
        return
    data = tensor.float().numpy()
    if tensor.dtype == torch.bfloat16 and tensor.ndim == 2:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        return
    writer.add_tensor(name, data)


def end_file(writer: Any) -> None:
    """Write all that was added."""
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def places(path: Path) -> dict[str, TensorPlace]:
    """Return where the tensors of a file lie; errors as in `read_gguf`."""
    with _opened(path) as data:
        return _Cursor(data, path).places()


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error


class _Cursor:
    """Walks through the bytes."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def read(self, with_tensors: bool, but: Collection[str]) -> GgufFile:
        fields, count = self._begin()
        if not with_tensors:
            return GgufFile(fields, {})
        placed = self._places(fields, count)
        return GgufFile(fields, {name: self._tensor(place) for name, place in placed.items() if name not in but})

    def places(self) -> dict[str, TensorPlace]:
        return self._places(*self._begin())

    def _begin(self) -> tuple[dict[str, Field], int]:
        """Return the fields, and how many tensors follow."""
        magic, version, tensor_count, field_count = self._unpack("4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise CheckpointError(f"{self._path} is no GGUF file of version 3")
        return {self._string(): self._field() for _ in range(field_count)}, tensor_count

    def _places(self, fields: dict[str, Field], count: int) -> dict[str, TensorPlace]:
        told = [(self._string(), self._shape(), *self._unpack("IQ")) for _ in range(count)]
        step = fields["general.alignment"].value if "general.alignment" in fields else 32
        start = -(-self._at // step) * step
        return {name: TensorPlace(shape, kind, start + at) for name, shape, kind, at in told}

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

    def _tensor(self, place: TensorPlace) -> Tensor:
        if place.kind not in _TENSORS:
            raise CheckpointError(f"{self._path}: tensors of type {place.kind}; a draft holds F32, BF16 and I64")
        count = int(np.prod(place.shape))
        found: npt.NDArray[Any] = np.frombuffer(self._data, _TENSORS[place.kind], count, place.at).copy()
        tensor = torch.from_numpy(found).reshape(place.shape)
        return tensor.view(torch.bfloat16) if place.kind == _BF16 else tensor
