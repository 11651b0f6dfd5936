"""One training sample in memory, and batches of them: rows of one sample or several, padded on the right."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from deepspec.errors import TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What training needs of one sample; CPU tensors."""

    sample_id: str
    input_ids: Tensor
    """`(T,)` int64."""
    loss_mask: Tensor
    """`(T,)` bool: True exactly on the tokens that the target generated."""
    hidden: Tensor
    """`(T, A·D)`: outputs of the captured target layers, concatenated in order."""
    last_hidden: Tensor
    """`(S, D)`: last hidden states after the target's final norm, at the S positions where they can supervise."""

    def cut(self, length: int) -> Self:
        """Return the first `length` tokens."""
        loss_mask = self.loss_mask[:length]
        return type(self)(
            sample_id=self.sample_id,
            input_ids=self.input_ids[:length],
            loss_mask=loss_mask,
            hidden=self.hidden[:length],
            last_hidden=self.last_hidden[: int(supervises(loss_mask).sum())],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Rows of whole samples, one after another, padded on the right: token 0, mask False, sample empty; no states.

    Most often a row is one sample. Where it is several, they know nothing of each other: whatever looks from one
    position at another asks `starts` and `ends`.
    """

    sample_ids: tuple[str, ...]
    """Of all samples, row by row."""
    starts: Tensor
    """`(B, T)` int64: where the sample that a position belongs to begins in its row."""
    ends: Tensor
    """`(B, T)` int64: the position behind that sample's last token."""
    input_ids: Tensor
    """`(B, T)` int64."""
    loss_mask: Tensor
    """`(B, T)` bool."""

    @property
    def positions(self) -> Tensor:
        """Return the place of each position within its sample, `(B, T)`: what rope turns by."""
        return self._places() - self.starts

    def spans(self) -> list[tuple[int, int, int]]:
        """Return row, start and end of every sample, in the order of `sample_ids`."""
        rows, starts = ((self._places() == self.starts) & (self.starts < self.ends)).nonzero(as_tuple=True)
        known = torch.stack((rows, starts, self.ends[rows, starts]), dim=1).tolist()
        return [(row, start, end) for row, start, end in known]

    def ahead(self, values: Tensor, places: int) -> Tensor:
        """Return the `(B, T)` values so many places ahead in the same sample, of one dtype; 0 where it has ended."""
        moved = pad(values, (0, places))[:, places:]
        return moved.masked_fill(self._places() + places >= self.ends, 0)

    def with_states(self, hidden: Tensor, last_hidden: Tensor) -> "Batch":
        """Return a batch of these tokens with their states."""
        told = {each.name: getattr(self, each.name) for each in fields(Tokens)}
        return Batch(**told, hidden=hidden, last_hidden=last_hidden)

    def _places(self) -> Tensor:
        return torch.arange(self.starts.shape[1], device=self.starts.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(Tokens):
    """Tokens with the states of the target; padding has states 0."""

    hidden: Tensor
    """`(B, T, A·D)`."""
    last_hidden: Tensor
    """`(B, T, D)`; 0 also where it cannot supervise."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return the batch on a device, its states in a dtype: they cross as they are, and are widened there."""
        moved = on_device(self, device)
        return replace(moved, hidden=moved.hidden.to(dtype), last_hidden=moved.last_hidden.to(dtype))


_Value = TypeVar("_Value")


def each_tensor(value: _Value, change: Callable[[Tensor], Tensor]) -> _Value:
    """Return a value in which every tensor is changed: tensors, and dataclasses, mappings and tuples of such."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif is_dataclass(value) and not isinstance(value, type):
        told: Any = value
        changed = replace(told, **{each.name: each_tensor(getattr(value, each.name), change) for each in fields(told)})
    elif isinstance(value, dict):
        changed = {key: each_tensor(item, change) for key, item in value.items()}
    elif isinstance(value, tuple):
        changed = tuple(each_tensor(item, change) for item in value)
    return cast(_Value, changed)


def on_device(value: _Value, device: torch.device | str) -> _Value:
    """Return a value whose tensors lie on a device; the host goes on meanwhile where they are pinned."""
    return each_tensor(value, lambda tensor: tensor.to(device, non_blocking=True))


def supervises(loss_mask: Tensor) -> Tensor:
    """Return where the last hidden state can supervise: at p where any of loss_mask[p-1..p+1] is set.

    Args:
        loss_mask: `(T,)` bool.

    Returns:
        `(T,)` bool.
    """
    near = loss_mask.clone()
    near[1:].logical_or_(loss_mask[:-1])
    near[:-1].logical_or_(loss_mask[1:])
    return near


def collate(records: Sequence[Record]) -> Batch:
    """Return the records as one batch, a row each.

    Raises:
        TrainingError: there is no record, or the tensors of one differ in length.
    """
    return collate_rows([[record] for record in records])


def collate_rows(rows: Sequence[Sequence[Record]]) -> Batch:
    """Return rows of records as one batch, padded on the right to the longest row.

    Raises:
        TrainingError: there is no record, or the tensors of one differ in length.
    """
    ids = [[record.sample_id for record in row] for row in rows]
    tokens = collate_tokens(ids, [[(record.input_ids, record.loss_mask) for record in row] for row in rows])
    return tokens.with_states(*collate_states(rows))


def collate_tokens(ids: Sequence[Sequence[str]], rows: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Tokens:
    """Return rows of samples' token ids and loss masks, padded on the right to the longest row.

    Args:
        ids: of the samples, row by row.
        rows: `(T,)` int64 and `(T,)` bool of each.

    Raises:
        TrainingError: there is no sample, or ids and mask of one differ in length.
    """
    if not rows or not all(rows):
        raise TrainingError("a batch needs at least one record in each row; the sampler gave none")
    for name, (input_ids, loss_mask) in zip(chain.from_iterable(ids), chain.from_iterable(rows), strict=True):
        _check(name, "input_ids", len(input_ids), len(loss_mask))
    edges = [list(accumulate((len(input_ids) for input_ids, _ in row), initial=0)) for row in rows]
    return Tokens(
        sample_ids=tuple(chain.from_iterable(ids)),
        starts=_padded([[torch.full((end - start,), start) for start, end in pairwise(row)] for row in edges]),
        ends=_padded([[torch.full((end - start,), end) for start, end in pairwise(row)] for row in edges]),
        input_ids=_padded([[input_ids for input_ids, _ in row] for row in rows]),
        loss_mask=_padded([[loss_mask for _, loss_mask in row] for row in rows]),
    )


def collate_states(rows: Sequence[Sequence[Record]], *, pinned: bool = False) -> tuple[Tensor, Tensor]:
    """Return the states of rows of records, `(B, T, A·D)` and `(B, T, D)`, each byte written once.

    Args:
        rows: of records.
        pinned: in memory from which a card can fetch while the host goes on.

    Raises:
        TrainingError: the tensors of a record differ in length.
    """
    for record in chain.from_iterable(rows):
        _check(record.sample_id, "hidden", len(record.hidden), len(record.loss_mask))
        _check(record.sample_id, "last_hidden", len(record.last_hidden), int(supervises(record.loss_mask).sum()))
    hidden = _padded([[record.hidden for record in row] for row in rows], pinned=pinned)
    last = _padded([[piece for record in row for piece in _spread(record)] for row in rows], pinned=pinned)
    return hidden, last


def _padded(rows: Sequence[Sequence[Tensor]], *, pinned: bool = False) -> Tensor:
    """Return rows of pieces as one tensor, zeros after each; every byte is written once."""
    lengths = [sum(map(len, row)) for row in rows]
    first = rows[0][0]
    padded = first.new_empty((len(rows), max(lengths), *first.shape[1:]), pin_memory=pinned)
    for place, row, length in zip(padded, rows, lengths, strict=True):
        torch.cat(list(row), out=place[:length])
        place[length:].zero_()
    return padded


def _spread(record: Record) -> Iterator[Tensor]:
    """Yield the last states where they can supervise, and zeros elsewhere, run by run; no byte of them is copied."""
    known = supervises(record.loss_mask).cpu().numpy()
    edges = (np.flatnonzero(known[1:] != known[:-1]) + 1).tolist()
    zeros, taken = record.last_hidden.new_zeros(1).expand(len(known), record.last_hidden.shape[1]), 0
    for start, end in pairwise([0, *edges, len(known)]):
        if known[start]:
            yield record.last_hidden[taken : taken + end - start]
            taken += end - start
        else:
            yield zeros[: end - start]


def _check(sample_id: str, name: str, rows: int, wanted: int) -> None:
    if rows != wanted:
        told = f"sample {sample_id}: {name} has {rows} rows, its loss mask wants {wanted}"
        raise TrainingError(f"{told}; rebuild its cache part")
