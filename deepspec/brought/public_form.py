"""The public DeepSpec form of a target cache, version 2: a manifest, one index, shards of plain tensors, no checksums.

Nothing in it is believed. Manifest, index and the shards' sizes are held against each other when a cache is opened;
token ids and masks when its samples are looked at; states when they are read.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from torch import Tensor

from deepspec.disk import check_name, checksum
from deepspec.errors import CorruptArtifactError, SourceError, TargetError
from deepspec.formats.tensor_heads import is_file, listed, read_object
from deepspec.records.batch import Record, supervises
from deepspec.specs import canonical_json
from deepspec.target.layers import check_layers
from deepspec.target_cache.codec import Bytes
from deepspec.target_cache.sizes import MIB

MANIFEST, ROWS = "manifest.json", "samples.idx"
VERSION = 2
FIELD_DTYPES: Mapping[str, str] = {"token_dtype": "int32", "mask_dtype": "uint8", "hidden_dtype": "bfloat16"}

_INDEX = np.dtype([("sample", "<u8"), ("shard", "<u4"), ("length", "<u4"), ("offsets", "<u8", 5)])
"""One row: where input_ids, attention_mask, loss_mask, the layers' states and the last state begin in the shard."""
_LONGEST = 1 << 31
_WIDEST, _DEEPEST = 1 << 20, 1 << 10
"""Hidden size and number of layers that no model passes, so that no product of them overflows."""


class _Shard(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    shard_id: Annotated[StrictInt, Field(ge=0)]
    file_name: StrictStr


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: Annotated[StrictInt, Field(gt=0, le=_WIDEST)]
    num_samples: Annotated[StrictInt, Field(gt=0)]
    target_layer_ids: Annotated[tuple[StrictInt, ...], Field(min_length=1, max_length=_DEEPEST)]
    shards: Annotated[tuple[_Shard, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """Which samples of a public cache can be trained on."""

    kept: list[int]
    """Their numbers, in order."""
    dropped: Counter[str]
    """Reason -> samples."""


class PublicCache:
    """A public cache, opened for reading.

    Args:
        folder: holds `manifest.json`, `samples.idx` and the shards.

    Raises:
        SourceError: it is none, of another version, incomplete, or contradicts itself; names file and field.
    """

    def __init__(self, folder: Path) -> None:
        """Read manifest and index, hold them against the shards, and map these."""
        self._folder = folder
        told = _read_manifest(folder / MANIFEST)
        self.layers = told.target_layer_ids
        self.hidden_size = told.hidden_size
        self._rows = _read_rows(folder / ROWS, told.num_samples)
        self._shards = _open_shards(folder, told.shards)
        self._check_rows()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        """Yield the samples in the order of the index."""
        return map(self.record, range(len(self)))

    def check_target(self, num_layers: int, hidden_size: int, where: str) -> None:
        """Check that the states can be those of a target.

        Args:
            num_layers: of the target.
            hidden_size: of the target.
            where: the target, for messages.

        Raises:
            TargetError: it has another hidden size.
            SourceError: it has no such layers, or none that a draft may read.
        """
        if self.hidden_size != hidden_size:
            raise TargetError(
                f"the cache holds states of size {self.hidden_size}, target {where} has {hidden_size}; give the target "
                "that made it"
            )
        try:
            check_layers(self.layers, num_layers)
        except TargetError as error:
            raise SourceError(f"target_layer_ids: {error}", self._folder / MANIFEST) from error

    def look(self, vocab_size: int, least: int) -> Looked:
        """Return which samples can be trained on, after a look at every token and mask.

        Args:
            vocab_size: rows of the target's embedding.
            least: supervised tokens that a sample must have.

        Raises:
            SourceError: a sample holds a token that the target does not know, or a mask that is none.
        """
        kept, dropped = [], Counter[str]()
        for number in range(len(self)):
            ids, mask = self._tokens(number)
            if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
                wrong = int(ids[(ids < 0) | (ids >= vocab_size)][0])
                raise self.wrong(number, f"token {wrong} is not in the target's vocabulary, 0 to {vocab_size - 1}")
            if int(mask.sum()) < least:
                dropped["too_few_supervised"] += 1
            else:
                kept.append(number)
        return Looked(kept=kept, dropped=dropped)

    def record(self, number: int) -> Record:
        """Return one sample, without padding.

        Raises:
            SourceError: its masks are none, or have holes.
        """
        ids, mask = self._tokens(number)
        row, length = self._rows[number], len(ids)
        loss_mask = torch.from_numpy(mask.astype(bool))
        hidden, last = (_bf16(self._piece(row, place), int(row["length"]))[:length] for place in (3, 4))
        return Record(
            sample_id=str(row["sample"]),
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            loss_mask=loss_mask,
            hidden=hidden,
            last_hidden=last[supervises(loss_mask)],
        )

    def source(self) -> str:
        """Return which cache it is: a hash over manifest and index, and over size, start and end of each shard.

        Hashing every byte of many terabytes would take as long as the import.
        """
        small = [[name, checksum(self._folder / name)] for name in (MANIFEST, ROWS)]
        shards = [[number, len(data), _ends(data)] for number, data in sorted(self._shards.items())]
        return hashlib.sha256(canonical_json([small, shards])).hexdigest()

    def state_bytes(self, number: int) -> int:
        """Return the bytes of a sample's states."""
        return int(self._rows[number]["length"]) * self.hidden_size * 2 * (len(self.layers) + 1)

    def _tokens(self, number: int) -> tuple[NDArray[np.int32], Bytes]:
        """Return token ids and loss mask of a sample, without padding, each held to what it may be."""
        row = self._rows[number]
        ids, attended, mask = (self._piece(row, place) for place in range(3))
        for name, values in (("attention mask", attended), ("loss mask", mask)):
            if int(values.max()) > 1:
                raise self.wrong(number, f"its {name} holds {int(values.max())}, wanted 0 and 1")
        length = int(attended.sum())
        if not length:
            raise self.wrong(number, "its attention mask is all 0")
        if not attended[:length].all():
            raise self.wrong(number, "its attention mask has holes; only padding at the end is known")
        return ids.view(np.int32)[:length], mask[:length]

    def _piece(self, row: Any, place: int) -> Bytes:
        """Return a copy of one of the five pieces of a sample."""
        start = int(row["offsets"][place])
        return np.array(self._shards[int(row["shard"])][start : start + int(row["length"]) * self._widths[place]])

    @property
    def _widths(self) -> tuple[int, ...]:
        """Return the bytes of a token in each of the five pieces."""
        state = self.hidden_size * 2
        return (4, 1, 1, state * len(self.layers), state)

    def _check_rows(self) -> None:
        """Hold every row of the index against the shards."""
        rows = self._rows
        sizes = {number: len(data) for number, data in self._shards.items()}
        self._refuse(np.isin(rows["shard"], list(sizes), invert=True), "names a shard that the manifest does not name")
        length = rows["length"].astype(np.uint64)
        self._refuse((length == 0) | (length >= _LONGEST), f"has a length that is not in 1 … {_LONGEST - 1}")
        room = np.array([sizes[int(shard)] for shard in rows["shard"]], dtype=np.uint64)
        for place, width in enumerate(self._widths):
            start, size = rows["offsets"][:, place], length * np.uint64(width)
            fits = (start <= room) & (size <= room - np.minimum(start, room))
            self._refuse(~fits, "lies beyond the end of its shard; fetch that again")
        _, first = np.unique(rows["sample"], return_index=True)
        again = np.ones(len(rows), dtype=bool)
        again[first] = False
        self._refuse(again, "has an id that an earlier one has, too")

    def _refuse(self, wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            raise self.wrong(int(wrong.argmax()), what)

    def wrong(self, number: int, what: str) -> SourceError:
        """Return the error of one sample, which says where it is."""
        row = self._rows[number]
        return SourceError(f"sample {row['sample']} (row {number}, shard {row['shard']}): {what}", self._folder / ROWS)


def _read_manifest(path: Path) -> _Manifest:
    told = read_object(path, SourceError)
    wanted = {"version": VERSION, "index_record_size": _INDEX.itemsize, **FIELD_DTYPES}
    for key, value in wanted.items():
        if key not in told or told[key] != value:
            raise SourceError(f"{key} is {told.get(key)!r}, wanted {value!r}", path)
    try:
        manifest = _Manifest.model_validate(told)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise SourceError(f"{listed(problems)}; wanted a cache in the public DeepSpec form", path) from error
    numbers = Counter(shard.shard_id for shard in manifest.shards)
    twice = [str(number) for number, count in numbers.items() if count > 1]
    if twice:
        raise SourceError(f"shards: {listed(twice)} named twice", path)
    return manifest


def _read_rows(path: Path, count: int) -> NDArray[Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}; fetch the cache again", path) from error
    if len(data) != count * _INDEX.itemsize:
        raise SourceError(f"{len(data)} bytes, wanted num_samples={count} records of {_INDEX.itemsize} bytes", path)
    return np.frombuffer(data, dtype=_INDEX)


def _open_shards(folder: Path, shards: tuple[_Shard, ...]) -> dict[int, Bytes]:
    for shard in shards:
        try:
            check_name(shard.file_name, "shards")
        except CorruptArtifactError as error:
            raise SourceError(str(error), folder / MANIFEST) from error
    missing = [shard.file_name for shard in shards if not is_file(folder / shard.file_name)]
    if missing:
        raise SourceError(f"shards: {listed(missing)} not there; fetch the cache again", folder / MANIFEST)
    empty = [shard.file_name for shard in shards if not (folder / shard.file_name).stat().st_size]
    if empty:
        raise SourceError(f"shards: {listed(empty)} empty; fetch the cache again", folder / MANIFEST)
    try:
        return {shard.shard_id: np.memmap(folder / shard.file_name, np.uint8, mode="c") for shard in shards}
    except OSError as error:
        raise SourceError(f"a shard cannot be read: {error}", folder) from error


def _bf16(data: Bytes, length: int) -> Tensor:
    return torch.from_numpy(data).view(torch.bfloat16).view(length, -1)


def _ends(data: Bytes) -> str:
    digest = xxhash.xxh3_128(np.ascontiguousarray(data[:MIB]).data)
    digest.update(np.ascontiguousarray(data[-MIB:]).data)
    return digest.hexdigest()
