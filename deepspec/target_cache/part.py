"""One part of a target cache: a safetensors file of the states, token ids and loss masks of some hundred samples.

The header has a fixed size, so that states stream to the file as they come and the header is filled in last.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from deepspec.errors import CorruptArtifactError
from deepspec.records.batch import Record, supervises
from deepspec.target_cache.codec import CODECS, Bytes, encode
from deepspec.target_cache.sizes import BF16_BYTES, HEADER, TOKEN_BYTES

FORMAT = "deepspec.target_cache"
VERSION = 1

COLUMNS: Mapping[str, str] = {
    "sample_id": "string",
    "split": "string",
    "shard": "uint32",
    "part": "uint32",
    "length": "uint32",
    "supervised": "uint32",
    "token_start": "uint64",
    "offset": "uint64",
    "bytes": "uint64",
    "checksum": "uint64",
}
"""Column of the index -> type. One row a sample: see docs/formats/target_cache.md."""

ADVICE = "see what else is damaged, and have it made again, with: deepspec cache verify --repair"
"""What to do about damaged bytes."""


def part_name(shard: int, part: int) -> str:
    """Return the file name of a part."""
    return f"shard-{shard:05d}-part-{part:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as a part holds it."""

    sample_id: str
    input_ids: Tensor
    """`(T,)`."""
    loss_mask: Tensor
    """`(T,)` bool."""
    block: list[Bytes]
    """Its states."""
    width: int
    """D."""


def planes_of(hidden: Tensor, last: Tensor) -> list[Tensor]:
    """Return the states of a sample, `(T, A·D)` and `(S, D)`, as a codec takes them: `(R, D)` bf16, where they lie."""
    width = last.shape[1]
    return [hidden.reshape(-1, width).to(torch.bfloat16), last.to(torch.bfloat16)]


class PartWriter:
    """Writes one part, sample by sample.

    Args:
        path: the file to make.
        shard: number of the shard.
        part: number of the part within it.
        codec: name in `CODECS`.
    """

    def __init__(self, path: Path, shard: int, part: int, codec: str) -> None:
        """Create the file with room for its header."""
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        """The rows of the index, column by column."""
        self._place = {"shard": shard, "part": part}
        self._codec_name, self._codec = codec, CODECS[codec]
        self._width = 0
        self._ids: list[NDArray[np.int32]] = []
        self._masks: list[Bytes] = []
        self._tokens = 0
        self._end = HEADER
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))

    def add(self, record: Record, split: str) -> None:
        """Append one sample."""
        width = record.last_hidden.shape[1]
        block = encode(self._codec, planes_of(record.hidden, record.last_hidden))
        self.append(Encoded(record.sample_id, record.input_ids, record.loss_mask, block, width), split)

    def append(self, sample: "Encoded", split: str) -> None:
        """Append one sample whose states are encoded already."""
        self._width = sample.width
        ids = sample.input_ids.to(torch.int32).numpy()
        mask = sample.loss_mask.to(torch.uint8).numpy()
        block = sample.block
        size = sum(len(piece) for piece in block)
        self._file.writelines(piece.data for piece in block)
        row = {
            "sample_id": sample.sample_id,
            "split": split,
            **self._place,
            "length": len(ids),
            "supervised": int(mask.sum()),
            "token_start": self._tokens,
            "offset": self._end,
            "bytes": size,
            "checksum": _checksum(ids, mask, *block),
        }
        for name, value in row.items():
            self.columns[name].append(value)
        self._ids.append(ids)
        self._masks.append(mask)
        self._tokens += len(ids)
        self._end += size

    def close(self) -> None:
        """Append token ids and masks, fill in the header, and sync."""
        self._file.writelines(ids.data for ids in self._ids)
        self._file.writelines(mask.data for mask in self._masks)
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _header(self) -> bytes:
        states = self._end - HEADER
        ids = states + 4 * self._tokens
        raw = self._codec_name == "bf16" and self._width > 0
        shape = [states // (2 * self._width), self._width] if raw else [states]
        header = {
            "__metadata__": {"format": FORMAT, "version": str(VERSION), "codec": self._codec_name},
            "states": {"dtype": "BF16" if raw else "U8", "shape": shape, "data_offsets": [0, states]},
            "input_ids": {"dtype": "I32", "shape": [self._tokens], "data_offsets": [states, ids]},
            "loss_mask": {"dtype": "U8", "shape": [self._tokens], "data_offsets": [ids, ids + self._tokens]},
        }
        size = HEADER - 8
        return size.to_bytes(8, "little") + json.dumps(header, separators=(",", ":")).encode().ljust(size)


class Part:
    """One part in memory or mapped: raw states are never copied.

    Args:
        data: the bytes of the file.
        name: what to call it in messages.
        width: D.
        captured: number of captured layers A.

    Raises:
        CorruptArtifactError: it is no part of a target cache.
    """

    def __init__(self, data: Bytes, name: str, width: int, captured: int) -> None:
        """Read the header."""
        self.name = name
        self._data, self._width, self._captured = data, width, captured
        self._verified: set[int] = set()
        try:
            header = json.loads(bytes(data[8:HEADER]))
            self._codec = CODECS[header["__metadata__"]["codec"]]
            self._ids_at = HEADER + header["input_ids"]["data_offsets"][0]
            self._masks_at = HEADER + header["loss_mask"]["data_offsets"][0]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{name} is no part of a target cache: {error!r}; {ADVICE}") from error

    def record(self, row: Mapping[str, Any]) -> Record:
        """Return one sample; its bytes are checked when it is first read.

        Args:
            row: its row of the index.

        Raises:
            CorruptArtifactError: they do not match, or cannot be decoded.
        """
        length, start = int(row["length"]), int(row["token_start"])
        ids = self._slice(self._ids_at + 4 * start, 4 * length)
        mask = self._slice(self._masks_at + start, length)
        block = self._slice(int(row["offset"]), int(row["bytes"]))
        if start not in self._verified and _checksum(ids, mask, block) != int(row["checksum"]):
            message = f"{self.name}: sample {row['sample_id']} does not match its checksum in the index"
            raise CorruptArtifactError(f"{message}; {ADVICE}")
        self._verified.add(start)
        loss_mask = torch.from_numpy(mask.astype(bool))
        split = length * self._captured
        rows = split + int(supervises(loss_mask).sum())
        try:
            states = self._codec.decode(block, rows, self._width)
        except (ValueError, RuntimeError, zstandard.ZstdError) as error:
            raise CorruptArtifactError(f"{self.name}: sample {row['sample_id']}: {error}; {ADVICE}") from error
        return Record(
            sample_id=str(row["sample_id"]),
            input_ids=torch.from_numpy(ids.view(np.int32).astype(np.int64)),
            loss_mask=loss_mask,
            hidden=states[:split].view(length, self._captured * self._width),
            last_hidden=states[split:],
        )

    def tokens(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return token ids, `(T,)` int64, and loss mask, `(T,)` bool, of one sample, and read nothing else of it.

        Args:
            row: its row of the index.

        Raises:
            CorruptArtifactError: the file ends early. The sample's checksum is over its states, too, and not looked at.
        """
        length, start = int(row["length"]), int(row["token_start"])
        ids = self._slice(self._ids_at + 4 * start, 4 * length)
        mask = self._slice(self._masks_at + start, length)
        return torch.from_numpy(ids.view(np.int32).astype(np.int64)), torch.from_numpy(mask.astype(bool))

    def _slice(self, start: int, size: int) -> Bytes:
        data = self._data[start : start + size]
        if len(data) != size:
            raise CorruptArtifactError(f"{self.name}: the file ends before byte {start + size}; {ADVICE}")
        return data


def raw_record_bytes(record: Record) -> int:
    """Return the bytes of a sample before any codec: its states in bf16, ids and mask."""
    states = record.hidden.numel() + record.last_hidden.numel()
    return states * BF16_BYTES + len(record.input_ids) * TOKEN_BYTES


def concatenate(columns: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """Return the index columns of several parts as one, in the order given."""
    return {name: [value for part in columns for value in part[name]] for name in COLUMNS}


def _checksum(*pieces: NDArray[Any]) -> int:
    digest = xxhash.xxh3_64()
    for data in pieces:
        digest.update(np.ascontiguousarray(data).data)
    return int(digest.intdigest())
