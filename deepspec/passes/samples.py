"""Answers -> samples, parts and forward passes: pure functions of the answers and of what is wanted.

Whoever captures them, into a cache or while training, works on the same samples in the same order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from deepspec.chat.answered import label_of, name_of
from deepspec.chat.template import ChatTemplate, Sample
from deepspec.errors import CaptureError, RowError
from deepspec.lines.bad_rows import EXAMPLES, one_row
from deepspec.lines.rows import read_rows
from deepspec.messages.conversations import Status
from deepspec.records.batch import Record, supervises
from deepspec.target_cache.sizes import BF16_BYTES, TOKEN_BYTES

_SHOWN = 400
"""Characters of a bad row's message that are kept."""


class WantedSamples(Protocol):
    """Which samples are wanted: fields that the specs of stages have."""

    @property
    def splits(self) -> Sequence[str]:
        """Return the splits."""

    @property
    def max_length(self) -> int:
        """Return the tokens of a sample at most."""

    @property
    def cut(self) -> Literal["head", "anywhere"]:
        """Return which stretch is kept of a longer sample."""

    @property
    def cut_seed(self) -> int:
        """Return the seed of that choice."""

    @property
    def min_supervised(self) -> int:
        """Return the supervised tokens of a sample at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One sample to capture."""

    sample: Sample
    split: str
    kind: str = ""
    """Source that its prompt names; none: nobody asks."""
    row: str = ""
    """Id of the answers that it is of: of one conversation there may be several samples; none: nobody asks."""

    @property
    def length(self) -> int:
        """Return the tokens."""
        return len(self.sample.input_ids)

    @property
    def last_rows(self) -> int:
        """Return the positions whose last hidden state is stored: those beside a supervised one, and itself."""
        mask = self.sample.loss_mask
        return sum(any(mask[max(p - 1, 0) : p + 2]) for p in range(len(mask)))


@dataclass(kw_only=True, slots=True)
class Read:
    """What some files of answers gave."""

    items: list[Item] = field(default_factory=list)
    """The samples, in order."""
    counts: Counter[str] = field(default_factory=Counter)
    """What became of every row; `dropped_REASON` of those that cannot be trained on."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first of those rows, with file, line and id."""

    def drop(self, error: RowError) -> None:
        """Count a row that cannot be trained on."""
        self.counts[f"dropped_{error.reason}"] += 1
        shown = self.examples.setdefault(error.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(str(error)[:_SHOWN])


def shard_files(names: Sequence[str], shard: int, shards: int) -> list[str]:
    """Return the answer files of one shard: neighbours, as evenly many in each as can be."""
    return list(names[len(names) * shard // shards : len(names) * (shard + 1) // shards])


def read_items(paths: Sequence[Path], template: ChatTemplate, wanted: WantedSamples, limit: int | None = None) -> Read:
    """Return the samples in some files of answers, and what became of every row: a bad one costs itself alone.

    Args:
        paths: the files.
        template: of the target.
        wanted: which splits, lengths and supervision.
        limit: rows read of each file; None: all.

    Raises:
        SourceError: a file that is not there or is damaged.
    """
    read = Read()

    def no_row(error: RowError) -> None:
        read.counts["rows"] += 1
        read.drop(error)

    for path in paths:
        for line, row in islice(read_rows(path, no_row), limit):
            read.counts["rows"] += 1
            try:
                with one_row("template_refuses", path.name, line):
                    _read_row(row, template, wanted, read)
            except RowError as error:
                read.drop(error)
    read.counts["samples"] = len(read.items)
    return read


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
    return (item.length * layers + item.last_rows) * width * BF16_BYTES + item.length * TOKEN_BYTES


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


def supervising(item: Item) -> Tensor:
    """Return the positions of a sample whose last hidden state is stored, `(S,)`."""
    return supervises(torch.tensor(item.sample.loss_mask)).nonzero()[:, 0]


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
    check_each_finite(record.sample_id, finite(record.hidden, record.last_hidden), layers)


def finite(hidden: Tensor, last: Tensor) -> Tensor:
    """Return whether every state is finite, by captured layer and then of the last states: `(A + 1,)` bool."""
    by_layer = hidden.reshape(len(hidden), -1, last.shape[1]).isfinite().all(-1).all(0)
    return torch.cat((by_layer, last.isfinite().all()[None]))


def check_each_finite(sample_id: str, found: Tensor, layers: Sequence[int]) -> None:
    """Check what `finite` found of a sample.

    Raises:
        CaptureError: some states are not; names sample and layer.
    """
    if found.all():
        return
    layer = next(name for name, good in zip((*layers, "last"), found.tolist(), strict=True) if not good)
    raise CaptureError(
        f"sample {sample_id}: the output of target layer {layer} holds NaN or infinity; "
        "try --set cache.dtype=float32, or leave the sample out of the prompts"
    )


def _read_row(row: Mapping[str, Any], template: ChatTemplate, wanted: WantedSamples, read: Read) -> None:
    split, status = label_of(row, "split"), label_of(row, "status")
    if split not in wanted.splits:
        read.counts["other_split"] += 1
        return
    if status not in get_args(Status):
        raise RowError("malformed", f"status is {status!r}; wanted one of {', '.join(get_args(Status))}")
    if status != "success":
        read.counts[f"status_{status}"] += 1
        return
    rendered = template.render(row)
    read.counts.update(
        turns=rendered.turns,
        drifted_turns=rendered.drifted,
        truncated_turns=rendered.truncated,
        date_assumed=rendered.date_assumed,
    )
    kept = [item for sample in rendered.samples if (item := _item(sample, split, wanted, read.counts)) is not None]
    kept = [replace(item, kind=str(row.get("source") or ""), row=name_of(row)) for item in kept]
    read.items += kept
    read.counts["rows_kept"] += bool(kept)


def _item(sample: Sample, split: str, wanted: WantedSamples, counts: Counter[str]) -> Item | None:
    counts["rendered_tokens"] += len(sample.input_ids)
    fitted = fit(sample, wanted.max_length, stretch_start(sample, wanted))
    if sum(fitted.loss_mask) < wanted.min_supervised:
        counts["dropped_too_few_supervised"] += 1
        return None
    counts["cut_samples"] += len(sample.input_ids) > wanted.max_length
    return Item(sample=fitted, split=split)


def fit(sample: Sample, max_length: int, start: int = 0) -> Sample:
    """Return a stretch of a sample, with nothing after its last supervised token; before its first one stands another.

    Args:
        sample: the whole.
        max_length: tokens at most.
        start: of the stretch.
    """
    mask = sample.loss_mask[start : start + max_length]
    mask[:1] = [False] * bool(start) or mask[:1]
    while mask and not mask[-1]:
        mask.pop()
    return replace(sample, input_ids=sample.input_ids[start : start + len(mask)], loss_mask=mask)


def stretch_start(sample: Sample, wanted: WantedSamples) -> int:
    """Return where the stretch begins that is kept: around a supervised token, which lies anywhere in it.

    A function of the seed and the sample's id: every supervised token is as likely as any other.
    """
    beyond = len(sample.input_ids) - wanted.max_length
    places = [place for place, supervised in enumerate(sample.loss_mask) if supervised]
    if wanted.cut == "head" or beyond <= 0 or not places:
        return 0
    generator = Random(f"{wanted.cut_seed}/{sample.sample_id}")
    return min(max(generator.choice(places) - generator.randrange(wanted.max_length), 0), beyond)
