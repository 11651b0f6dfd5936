"""Import of caches in the public DeepSpec form, version 2: one index, shards of plain tensors, no checksums."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor

from deepspec.artifacts import (
    ArtifactRef,
    PartMark,
    Spec,
    TargetId,
    address_of,
    canonical_json,
    check_name,
    checksum,
    read_manifest,
    reference,
)
from deepspec.cache.spec import MIB
from deepspec.cache.totals import savings, totals
from deepspec.errors import SourceError, TargetError, UnknownNameError
from deepspec.formats.records import Record, supervises
from deepspec.formats.target_cache import (
    CODECS,
    INDEX,
    TOKENS_ONLY,
    PartWriter,
    concatenate,
    part_name,
    write_index,
)
from deepspec.publish import Out, is_complete
from deepspec.report import Report
from deepspec.store import Store
from deepspec.target.identity import identify
from deepspec.target.load import Target, load_target
from deepspec.target.mask_token import mask_token_facts
from deepspec.target.samples import check_finite, raw_record_bytes

_ROW = struct.Struct("<QIIQQQQQ")
_VERSION = 2
_IMPORT_VERSION = 1
_DTYPES: Mapping[str, Any] = {"token_dtype": "int32", "mask_dtype": "uint8", "hidden_dtype": "bfloat16"}


class ImportSpec(Spec):
    """What an imported cache depends on."""

    source: str
    """Which public cache, see `PublicCache.source`."""
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
        loss_mask = torch.from_numpy(mask.astype(bool))[:length]
        return Record(
            sample_id=str(row.sample),
            input_ids=torch.from_numpy(ids.view(np.int32).astype(np.int64))[:length],
            loss_mask=loss_mask,
            hidden=_bf16(hidden, row.length)[:length],
            last_hidden=_bf16(last, row.length)[:length][supervises(loss_mask)],
        )

    def source(self) -> str:
        """Return which cache it is: a hash over manifest and index, and over size, start and end of each shard.

        Hashing every byte of many terabytes would take as long as the import.
        """
        small = [[name, checksum(self._folder / name)] for name in ("manifest.json", "samples.idx")]
        shards = [[number, len(data), _ends(data)] for number, data in sorted(self._shards.items())]
        return hashlib.sha256(canonical_json([small, shards])).hexdigest()

    def parts(self, part_bytes: int) -> list[list[int]]:
        """Return the numbers of the samples in parts of at most so many bytes of states, in order."""
        parts: list[list[int]] = []
        room = 0
        for number, row in enumerate(self._rows):
            size = self._state_bytes(row)
            if not parts or size > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(number)
            room -= size
        return parts

    def _state_bytes(self, row: _Row) -> int:
        return row.length * self.hidden_size * 2 * (len(self.layers) + 1)

    def _piece(self, row: _Row, start: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        data = self._shards[row.shard][start : start + size]
        if len(data) != size:
            raise SourceError(f"{self._folder}: shard {row.shard} ends inside sample {row.sample}; fetch it again")
        return np.array(data)


def publish_public(spec: ImportSpec, cache: PublicCache, target: Target, out: Out, report: Report) -> ArtifactRef:
    """Publish a public cache in our form, part by part; one that was interrupted goes on. All samples are `train`.

    Args:
        spec: codec and sizes.
        cache: what to import.
        target: whose states they are.
        out: where to write, see `import_out`.
        report: who listens.

    Raises:
        TargetError: the target has another hidden size.
        CaptureError: a state is NaN or infinite.
    """
    if cache.hidden_size != target.hidden_size:
        raise TargetError(
            f"the cache holds states of size {cache.hidden_size}, target {target.folder} has {target.hidden_size}"
        )
    published = read_manifest(out.store, out.kind, out.address)
    if published is not None and is_complete(out.store, published):
        return reference(out.store, published)
    facts = _facts(spec, cache, target)
    marks = []
    for number, samples in enumerate(cache.parts(spec.part_bytes)):
        mark = out.part(0, number) or _import_part(cache, samples, number, out, facts)
        marks.append(mark)
        report.progress(samples[-1] + 1, len(cache), "samples")
    columns = concatenate([mark.extra["columns"] for mark in marks])
    write_index(out.file(INDEX), columns)
    counts = {**facts, **totals(marks, columns)}
    report.table("target-cache", savings(counts))
    return out.publish(spec, _IMPORT_VERSION, counts)


def import_folder(folder: Path, target: Path, codec: str, store: Store, scratch: Path, report: Report) -> ArtifactRef:
    """Publish the public cache that lies in a folder.

    Args:
        folder: the public cache.
        target: folder of the model whose states it holds.
        codec: how states are stored from now on.
        store: where to publish.
        scratch: local folder for parts on their way.
        report: who listens.

    Raises:
        SpecError: there is no such codec.
        SourceError: the cache cannot be read.
        TargetError: the target cannot be read, or has another hidden size.
    """
    if codec not in CODECS or codec == TOKENS_ONLY:
        raise UnknownNameError("codec", codec, set(CODECS) - {TOKENS_ONLY})
    cache = PublicCache(folder)
    spec = ImportSpec.model_validate({"source": cache.source(), "target": identify(target), "codec": codec})
    return publish_public(spec, cache, load_target(target), import_out(spec, store, scratch), report)


def import_out(spec: ImportSpec, store: Store, scratch: Path) -> Out:
    """Return where an import is published."""
    return Out(store, "target_cache", address_of("target_cache", _IMPORT_VERSION, spec, {}), {}, scratch)


def _import_part(
    cache: PublicCache, samples: Sequence[int], number: int, out: Out, facts: Mapping[str, Any]
) -> PartMark:
    path = out.scratch / f"{out.attempt}-{part_name(0, number)}"
    writer = PartWriter(path, 0, number, facts["codec"])
    raw, tokens = 0, 0
    for sample in samples:
        record = cache.record(sample)
        check_finite(record, cache.layers)
        writer.add(record, "train")
        raw += raw_record_bytes(record)
        tokens += len(record.input_ids)
    writer.close()
    counts = {"rows": {"rendered_tokens": tokens}, "raw_bytes": raw, "stored_bytes": path.stat().st_size}
    extra = {"facts": dict(facts), "columns": writer.columns}
    return out.commit_part(0, number, {part_name(0, number): path}, counts, extra)


def _facts(spec: ImportSpec, cache: PublicCache, target: Target) -> dict[str, Any]:
    return {
        "target": spec.target.model_dump(),
        "layers": list(cache.layers),
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        **mask_token_facts(target.tokenizer, target.vocab_size),
        "dtype": _DTYPES["hidden_dtype"],  # the public capture runs its target in it
        "codec": spec.codec,
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


def _ends(data: "np.ndarray[Any, np.dtype[np.uint8]]") -> str:
    digest = xxhash.xxh3_128(np.ascontiguousarray(data[:MIB]).data)
    digest.update(np.ascontiguousarray(data[-MIB:]).data)
    return digest.hexdigest()
