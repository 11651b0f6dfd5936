"""The answers in samples: where each begins, how much of it is walked, and whether it ends there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.records.batch import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkedAnswer:
    """The tokens of one answer that are walked."""

    sample: int
    """Number of its sample in the batch."""
    row: int
    start: int
    """Position of its first token, which no round makes."""
    length: int
    stopped: bool
    """Whether the last of these tokens ends the answer."""


def answers_in(batch: Tokens, stop_ids: frozenset[int], most: int) -> Iterator[WalkedAnswer]:
    """Yield the answers of a batch: each run of tokens that the target generated, through its first stop token.

    An answer of one token tells nothing: no round makes it.

    Args:
        batch: samples, in host memory.
        stop_ids: tokens that end an answer.
        most: tokens of a sample that are walked, from its first answer on.
    """
    stops = torch.isin(batch.input_ids, torch.tensor(sorted(stop_ids), dtype=torch.int64))
    for sample, (row, start, end) in enumerate(batch.spans()):
        left = most
        for first, behind in _runs(batch.loss_mask[row, start + 1 : end], start + 1):
            places = stops[row, first:behind].nonzero()[:, 0].tolist()
            whole = min(behind - first, places[0] + 1 if places else behind - first)
            length = min(whole, left)
            left -= length
            if length > 1:
                stopped = bool(places) and length == whole
                yield WalkedAnswer(sample=sample, row=row, start=first, length=length, stopped=stopped)


def _runs(mask_T: Tensor, offset: int) -> Iterator[tuple[int, int]]:
    """Yield where each run of True begins, and the position behind it; all moved by an offset."""
    edges = torch.nn.functional.pad(mask_T.to(torch.int8), (1, 1)).diff()
    begins, ends = ((edges == sign).nonzero()[:, 0] + offset for sign in (1, -1))
    yield from zip(begins.tolist(), ends.tolist(), strict=True)
