"""Import of caches in the public DeepSpec form, version 2: one index, shards of plain tensors, no checksums."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepspec.artifacts import Report, Spec, TargetId, canonical_json, check_name, checksum
from deepspec.cache.spec import MIB
from deepspec.errors import SourceError, TargetError
from deepspec.formats.records import Record
from deepspec.formats.target_cache import INDEX, PartWriter, SplitCounts, concatenate, part_name, write_index
from deepspec.publish import Out
from deepspec.target.load import Target
from deepspec.target.mask_token import mask_token_facts
from deepspec.target.samples import check_finite, published_bytes

_ROW = struct.Struct("<QIIQQQQQ")
_VERSION = 2
_DTYPES: Mapping[str, Any] = {"token_dtype": "int32", "mask_dtype": "uint8", "hidden_dtype": "bfloat16"}


class ImportSpec(Spec):
    """What an imported cache depends on."""

    source: str
    """Hash over all files of the public cache."""
    target: TargetId
    """Whose states they are, as the user says: the public form does not tell."""
    codec: Literal["bf16", "bf16-zstd", "fp8"] = "bf16-zstd"
    """How states are stored from now on."""
    part_bytes: int = 256 * MIB
    """States of one part, before the codec."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    sample: int
    shard: int
    length: int
    offsets: tuple[int, int, int, int, int]
    """Of input_ids, attention_mask, loss_mask, layers' states and last state in the shard."""


class PublicCache:
    """A public cache, opened for reading.

    Args:
        folder: holds `manifest.json`, `samples.idx` and the shards.

    Raises:
        SourceError: it is none, of another version, or cut off.
        CorruptArtifactError: its manifest names files outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Read manifest and index, and map the shards."""
        self._folder = folder
        manifest = _read_manifest(folder)
        self.layers: tuple[int, ...] = tuple(manifest["target_layer_ids"])
        self.hidden_size: int = manifest["hidden_size"]
        index = (folder / "samples.idx").read_bytes()
        if len(index) != manifest["num_samples"] * _ROW.size:
            wanted = f"{manifest['num_samples']} records of {_ROW.size} bytes"
            raise SourceError(f"{len(index)} bytes, wanted {wanted}", folder / "samples.idx")
        self._rows = [_row(values) for values in _ROW.iter_unpack(index)]
        names = {shard["shard_id"]: shard["file_name"] for shard in manifest["shards"]}
        for name in names.values():
            check_name(name, str(folder / "manifest.json"))
        self._shards = {number: np.memmap(folder / name, mode="c") for number, name in names.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        """Yield the samples in the order of the index."""
        return map(self.record, range(len(self)))

    def record(self, number: int) -> Record:
        """Return one sample, without padding.

        Raises:
            SourceError: its shard ends early, or its attention mask has holes.
        """
        row = self._rows[number]
        states = row.length * self.hidden_size * 2
        sizes = (4 * row.length, row.length, row.length, states * len(self.layers), states)
        pieces = [self._piece(row, start, size) for start, size in zip(row.offsets, sizes, strict=True)]
        ids, attended, mask, hidden, last = pieces
        length = int(attended.sum())
        if not attended[:length].all():
            raise SourceError(f"sample {row.sample}: its attention mask has holes; only padding at the end is known")
        return Record(
            sample_id=str(row.sample),
            input_ids=torch.from_numpy(ids.view(np.int32).astype(np.int64))[:length],
            loss_mask=torch.from_numpy(mask.astype(bool))[:length],
            hidden=_bf16(hidden, row.length)[:length],
            last_hidden=_bf16(last, row.length)[:length],
        )

    def source(self) -> str:
        """Return the hash over all files: which cache it is."""
        files = sorted(path for path in self._folder.iterdir() if path.is_file())
        told = [[path.name, checksum(path)] for path in files]
        return hashlib.sha256(canonical_json(told)).hexdigest()

    def _piece(self, row: _Row, start: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        data = self._shards[row.shard][start : start + size]
        if len(data) != size:
            raise SourceError(f"{self._folder}: shard {row.shard} ends inside sample {row.sample}; fetch it again")
        return np.array(data)


def import_public(spec: ImportSpec, cache: PublicCache, target: Target, out: Out, report: Report) -> dict[str, Any]:
    """Write a public cache in our form; return what the manifest counts. All samples are of the split `train`.

    Args:
        spec: codec and sizes.
        cache: what to import.
        target: whose states they are.
        out: where to write.
        report: who listens.

    Raises:
        TargetError: the target has another hidden size.
        CaptureError: a state is NaN or infinite.
    """
    if cache.hidden_size != target.hidden_size:
        raise TargetError(
            f"the cache holds states of size {cache.hidden_size}, target {target.folder} has {target.hidden_size}"
        )
    columns = []
    raw = 0
    for number, records in enumerate(_parts(cache, spec.part_bytes)):
        path = out.file(part_name(0, number))
        writer = PartWriter(path, 0, number, spec.codec)
        for record in records:
            check_finite(record, cache.layers)
            writer.add(record, "train")
            raw += _size(record)
        writer.close()
        columns.append(writer.columns)
        report.progress(sum(len(part["length"]) for part in columns), len(cache), "samples")
    joined = concatenate(columns)
    write_index(out.file(INDEX), joined)
    tokens, supervised = sum(joined["length"]), sum(joined["supervised"])
    split = SplitCounts(samples=len(cache), tokens=tokens, supervised=supervised)
    return {
        "target": spec.target.model_dump(),
        "layers": list(cache.layers),
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        **mask_token_facts(target.tokenizer, target.vocab_size),
        "dtype": "auto",  # the public form does not say
        "codec": spec.codec,
        "splits": {"train": split.model_dump()},
        "samples": len(cache),
        "tokens": tokens,
        "supervised": supervised,
        "parts": len(columns),
        "published_bytes": published_bytes(tokens, len(cache.layers), cache.hidden_size),
        "raw_bytes": raw,
        "stored_bytes": sum(out.file(part_name(0, number)).stat().st_size for number in range(len(columns))),
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot be read: {error}; wanted a cache in the public DeepSpec form", path) from error
    told = {"version": _VERSION, "index_record_size": _ROW.size, **_DTYPES}
    for key, wanted in told.items():
        if key not in manifest or manifest[key] != wanted:
            raise SourceError(f"{key} is {manifest.get(key)!r}, wanted {wanted!r}", path)
    return manifest


def _row(values: tuple[int, ...]) -> _Row:
    sample, shard, length, *offsets = values
    first, second, third, fourth, fifth = offsets
    return _Row(sample=sample, shard=shard, length=length, offsets=(first, second, third, fourth, fifth))


def _bf16(data: "np.ndarray[Any, np.dtype[np.uint8]]", length: int) -> Tensor:
    return torch.from_numpy(data).view(torch.bfloat16).view(length, -1)


def _parts(records: PublicCache, part_bytes: int) -> Iterator[list[Record]]:
    waiting: list[Record] = []
    room = part_bytes
    for record in records:
        if waiting and _size(record) > room:
            yield waiting
            waiting, room = [], part_bytes
        waiting.append(record)
        room -= _size(record)
    if waiting:
        yield waiting


def _size(record: Record) -> int:
    return 2 * (record.hidden.numel() + record.last_hidden.numel())
