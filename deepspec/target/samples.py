"""Answers -> samples, parts and forward passes: pure functions of the answers and of what is wanted.

Whoever captures them, into a cache or while training, works on the same samples in the same order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepspec.errors import CaptureError, RowError
from deepspec.formats.records import Record, supervises
from deepspec.formats.rows import read_rows
from deepspec.target.template import TRUNCATED, ChatTemplate, Sample

BF16 = 2
"""Bytes of a stored value before the codec."""

TOKEN = 5
"""Bytes of a token id and its mask."""


class Wanted(Protocol):
    """Which samples are wanted: fields that the specs of stages have."""

    @property
    def splits(self) -> Sequence[str]:
        """Return the splits."""

    @property
    def max_length(self) -> int:
        """Return the tokens of a sample at most."""

    @property
    def min_supervised(self) -> int:
        """Return the supervised tokens of a sample at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One sample to capture."""

    sample: Sample
    split: str

    @property
    def length(self) -> int:
        """Return the tokens."""
        return len(self.sample.input_ids)

    @property
    def last_rows(self) -> int:
        """Return the positions whose last hidden state is stored: those beside a supervised one, and itself."""
        mask = self.sample.loss_mask
        return sum(any(mask[max(p - 1, 0) : p + 2]) for p in range(len(mask)))


def shard_files(names: Sequence[str], shard: int, shards: int) -> list[str]:
    """Return the answer files of one shard: neighbours, as evenly many in each as can be."""
    return list(names[len(names) * shard // shards : len(names) * (shard + 1) // shards])


def read_items(
    paths: Sequence[Path], template: ChatTemplate, wanted: Wanted, limit: int | None = None
) -> tuple[list[Item], Counter[str]]:
    """Return the samples in some files of answers, in order, and what became of every row.

    Args:
        paths: the files.
        template: of the target.
        wanted: which splits, lengths and supervision.
        limit: rows read of each file; None: all.

    Raises:
        SourceError: a row supervises nothing, or everything.
    """
    counts: Counter[str] = Counter()
    items: list[Item] = []
    for path in paths:
        for _, row in islice(read_rows(path), limit):
            counts["rows"] += 1
            items.extend(_items(row, template, wanted, counts))
    counts["samples"] = len(items)
    return items, counts


def cut_parts(items: Sequence[Item], layers: int, width: int, part_bytes: int) -> list[list[Item]]:
    """Return the samples in parts of at most so many bytes of raw states, or of one sample that is larger.

    Args:
        items: samples of a shard, in order.
        layers: captured layers.
        width: hidden size.
        part_bytes: limit.
    """
    parts: list[list[Item]] = []
    room = 0
    for item in items:
        size = raw_bytes(item, layers, width)
        if not parts or size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(item)
        room -= size
    return parts


def raw_bytes(item: Item, layers: int, width: int) -> int:
    """Return the bytes of a sample in the cache before the codec."""
    return (item.length * layers + item.last_rows) * width * BF16 + item.length * TOKEN


def raw_record_bytes(record: Record) -> int:
    """Return the same of a sample whose states are there."""
    return (record.hidden.numel() + record.last_hidden.numel()) * BF16 + len(record.input_ids) * TOKEN


def published_bytes(tokens: int, layers: int, width: int) -> int:
    """Return what the public layout takes: every position of all layers and the last, ids and two masks."""
    return tokens * ((layers + 1) * width * BF16 + TOKEN + 1)


def batches(items: Sequence[Item], batch_tokens: int) -> Iterator[list[Item]]:
    """Yield the forward passes of a part: samples of like length together, longest first.

    Args:
        items: samples of the part.
        batch_tokens: tokens of a pass, padding included; a longer sample is a pass of its own.
    """
    waiting: list[Item] = []
    for item in sorted(items, key=lambda item: -item.length):
        if waiting and waiting[0].length * (len(waiting) + 1) > batch_tokens:
            yield waiting
            waiting = []
        waiting.append(item)
    if waiting:
        yield waiting


def padded(items: Sequence[Item]) -> Tensor:
    """Return the token ids of a forward pass, `(B, T)`, padded on the right with 0."""
    ids = torch.zeros(len(items), max(item.length for item in items), dtype=torch.int64)
    for row, item in zip(ids, items, strict=True):
        row[: item.length] = torch.tensor(item.sample.input_ids)
    return ids


def to_record(item: Item, hidden: Tensor, last: Tensor) -> Record:
    """Return what was captured of one sample, without padding, its states in bf16.

    Args:
        item: the sample.
        hidden: `(T or more, A·D)` outputs of the captured layers.
        last: `(T or more, D)` states after the final norm.
    """
    loss_mask = torch.tensor(item.sample.loss_mask)
    return Record(
        sample_id=item.sample.sample_id,
        input_ids=torch.tensor(item.sample.input_ids),
        loss_mask=loss_mask,
        hidden=hidden[: item.length].to("cpu", torch.bfloat16),
        last_hidden=last[: item.length].to("cpu", torch.bfloat16)[supervises(loss_mask)],
    )


def check_finite(record: Record, layers: Sequence[int]) -> None:
    """Check that no state is NaN or infinite.

    Raises:
        CaptureError: one is; names sample and layer.
    """
    width = record.last_hidden.shape[1]
    by_layer = record.hidden.view(-1, len(layers), width).unbind(1)
    for layer, states in (*zip(layers, by_layer, strict=True), ("last", record.last_hidden)):
        if not torch.isfinite(states).all():
            raise CaptureError(
                f"sample {record.sample_id}: the output of target layer {layer} holds NaN or infinity; "
                "try --set cache.dtype=float32, or leave the sample out of the prompts"
            )


def _items(row: Mapping[str, Any], template: ChatTemplate, wanted: Wanted, counts: Counter[str]) -> Iterator[Item]:
    if row["split"] not in wanted.splits:
        counts["other_split"] += 1
        return
    if row["status"] != "success":
        counts[f"status_{row['status']}"] += 1
        return
    try:
        rendered = template.render(row)
    except RowError as error:
        counts[f"dropped_{error.reason}"] += 1
        return
    counts["turns"] += rendered.turns
    counts["drifted_turns"] += rendered.drifted
    counts["truncated_turns"] += sum(reason == TRUNCATED for reason in row["finish_reasons"])
    for sample in rendered.samples:
        counts["rendered_tokens"] += len(sample.input_ids)
        fitted = fit(sample, wanted.max_length)
        counts["cut_samples"] += len(sample.input_ids) > wanted.max_length
        if sum(fitted.loss_mask) < wanted.min_supervised:
            counts["dropped_too_few_supervised"] += 1
        else:
            yield Item(sample=fitted, split=row["split"])


def fit(sample: Sample, max_length: int) -> Sample:
    """Return a sample cut to a length, with nothing after its last supervised token."""
    mask = sample.loss_mask[:max_length]
    while mask and not mask[-1]:
        mask.pop()
    return replace(sample, input_ids=sample.input_ids[: len(mask)], loss_mask=mask)
