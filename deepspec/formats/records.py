"""One training sample in memory, and a right-padded batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

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
class Batch:
    """Samples padded on the right: token 0, mask False, states 0."""

    sample_ids: tuple[str, ...]
    lengths: Tensor
    """`(B,)` int64: tokens of each sample before padding."""
    input_ids: Tensor
    """`(B, T)` int64."""
    loss_mask: Tensor
    """`(B, T)` bool."""
    hidden: Tensor
    """`(B, T, A·D)`."""
    last_hidden: Tensor
    """`(B, T, D)`; 0 also where it cannot supervise."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return the batch on a device, its states in a dtype."""
        return type(self)(
            sample_ids=self.sample_ids,
            lengths=self.lengths.to(device, non_blocking=True),
            input_ids=self.input_ids.to(device, non_blocking=True),
            loss_mask=self.loss_mask.to(device, non_blocking=True),
            hidden=self.hidden.to(device, dtype, non_blocking=True),
            last_hidden=self.last_hidden.to(device, dtype, non_blocking=True),
        )


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
    """Return the records as one batch, padded on the right to the longest.

    Raises:
        TrainingError: there is no record, or the tensors of one differ in length.
    """
    if not records:
        raise TrainingError("a batch needs at least one record; the sampler gave none")
    kept = [supervises(record.loss_mask) for record in records]
    for record, where in zip(records, kept, strict=True):
        _check(record, int(where.sum()))
    return Batch(
        sample_ids=tuple(record.sample_id for record in records),
        lengths=torch.tensor([len(record.input_ids) for record in records]),
        input_ids=_padded([record.input_ids for record in records]),
        loss_mask=_padded([record.loss_mask for record in records]),
        hidden=_padded([record.hidden for record in records]),
        last_hidden=_spread([record.last_hidden for record in records], kept),
    )


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Return the rows as one tensor, zeros after each; every byte is written once, which `pad_sequence` does not."""
    longest = max(len(row) for row in rows)
    padded = rows[0].new_empty(len(rows), longest, *rows[0].shape[1:])
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :].zero_()
    return padded


def _spread(rows: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """Return the rows at the places that were kept, zeros elsewhere; copied run by run, every byte once."""
    longest = max(len(where) for where in kept)
    spread = rows[0].new_empty(len(rows), longest, *rows[0].shape[1:])
    for place, states, where in zip(spread, rows, kept, strict=True):
        known = where.cpu().numpy()
        edges = (np.flatnonzero(known[1:] != known[:-1]) + 1).tolist()
        taken = 0
        for start, end in pairwise([0, *edges, len(known)]):
            if known[start]:
                place[start:end] = states[taken : taken + end - start]
                taken += end - start
            else:
                place[start:end].zero_()
        place[len(known) :].zero_()
    return spread


def _check(record: Record, supervising: int) -> None:
    tokens = len(record.loss_mask)
    found = {
        "input_ids": (len(record.input_ids), tokens),
        "hidden": (len(record.hidden), tokens),
        "last_hidden": (len(record.last_hidden), supervising),
    }
    for name, (rows, wanted) in found.items():
        if rows != wanted:
            told = f"sample {record.sample_id}: {name} has {rows} rows, its loss mask wants {wanted}"
            raise TrainingError(f"{told}; rebuild its cache part")
