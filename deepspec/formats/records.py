"""One training sample in memory, and a right-padded batch of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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
    """`(T, D)`: last hidden state after the target's final norm; zeros where it is not stored."""

    def cut(self, length: int) -> Self:
        """Return the first `length` tokens."""
        return type(self)(
            sample_id=self.sample_id,
            input_ids=self.input_ids[:length],
            loss_mask=self.loss_mask[:length],
            hidden=self.hidden[:length],
            last_hidden=self.last_hidden[:length],
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
    """`(B, T, D)`."""

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


def collate(records: Sequence[Record]) -> Batch:
    """Return the records as one batch, padded on the right to the longest.

    Raises:
        TrainingError: there is no record, or the tensors of one differ in length.
    """
    if not records:
        raise TrainingError("a batch needs at least one record; the sampler gave none")
    for record in records:
        _check(record)
    return Batch(
        sample_ids=tuple(record.sample_id for record in records),
        lengths=torch.tensor([len(record.input_ids) for record in records]),
        input_ids=_padded([record.input_ids for record in records]),
        loss_mask=_padded([record.loss_mask for record in records]),
        hidden=_padded([record.hidden for record in records]),
        last_hidden=_padded([record.last_hidden for record in records]),
    )


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Return the rows as one tensor, zeros after each; every byte is written once, which `pad_sequence` does not."""
    longest = max(len(row) for row in rows)
    padded = rows[0].new_empty(len(rows), longest, *rows[0].shape[1:])
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :] = 0
    return padded


def _check(record: Record) -> None:
    lengths = {
        "input_ids": len(record.input_ids),
        "loss_mask": len(record.loss_mask),
        "hidden": len(record.hidden),
        "last_hidden": len(record.last_hidden),
    }
    if len(set(lengths.values())) > 1:
        raise TrainingError(
            f"sample {record.sample_id}: tensors of different lengths {lengths}; rebuild its cache part"
        )
