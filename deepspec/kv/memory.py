"""What a target remembers of the rows that it decodes, behind one interface.

RowCache (rows.py)      keys and values, ragged rows in one batch; taking tokens back sets a length
StateCache (states.py)  the same with states beside them: accepted tokens are read again, those of rows that accepted as
                        many in one pass
OwnMemory               what the model itself keeps, of any kind: a memory for each row, read one row after another. It
                        is kept as it was when the round began, and the accepted tokens are read again: one short pass
                        for each row that did not accept everything

Legend: B rows, Q tokens a row is given, A captured layers, D hidden size.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

ReadingWay = Literal["rows", "states", "steps", "chunks", "tokens", "whole"]
"""How tokens are read behind what is remembered (readers.py)."""
StatesRead = tuple[Tensor, Tensor]
"""Captured states `(B, Q, A·D)` and last states `(B, Q, D)`."""

MASK_BYTES = 1 << 28
"""Of the masks of a pass over prompts, at most: where a model takes masks of ours, long prompts are read in pieces."""


def read_at_once(rows: int, length: int, masks: int, dtype: torch.dtype) -> int:
    """Return how many tokens of prompts are read in a pass, so that its masks take no more than `MASK_BYTES`.

    Args:
        rows: that are read together.
        length: of the longest prompt, whose last tokens see all before them.
        masks: that a pass takes; 0: none, and everything is read at once.
        dtype: of the masks.
    """
    return max(1, min(length, MASK_BYTES // (rows * length * masks * dtype.itemsize))) if masks else length


def joined(pieces: Sequence[StatesRead]) -> StatesRead:
    """Return what was read in pieces, without a copy where there is one."""
    states, last = zip(*pieces, strict=True)
    return pieces[0] if len(pieces) == 1 else (torch.cat(states, 1), torch.cat(last, 1))


class Memory(Protocol):
    """What is remembered of many rows, each at its own length."""

    lengths: Tensor
    """`(B,)`: tokens that each row has read and kept."""

    def advance(self, counts: Tensor | int) -> None:
        """Keep the first `counts` tokens of each row's last reading, and take back the others."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and put them in this order."""

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another memory's rows in the place of these."""


class MemoryReader(Protocol):
    """One way to read."""

    way: ReadingWay

    def memory(self, rows: int, capacity: int) -> Any:
        """Return the memory of empty rows that have room for some tokens."""

    def prompts(self, prompts: Sequence[Sequence[int]], memory: Any) -> StatesRead:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""

    def behind(self, tokens: Tensor, memory: Any) -> StatesRead:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""


class OneRow(Protocol):
    """Reads tokens of one row behind what a model's own memory holds."""

    def again(self, tokens: Tensor, kept: "MemoryRow") -> None:
        """Read `(1, Q)` tokens once more, for the memory alone."""


@dataclass(kw_only=True, slots=True)
class MemoryRow:
    """One sequence: the model's own memory of it."""

    past: Any = None
    """As the model made it; None before the first token."""
    before: Any = None
    """The same as it was when the open tokens were read."""
    read: list[int] = field(default_factory=list)
    """Tokens that were kept."""
    open: list[int] = field(default_factory=list)
    """Tokens of the last reading, not kept yet."""

    def begin(self, tokens: Sequence[int]) -> None:
        """Remember where a reading begins; one that was never kept is taken back."""
        self.past = self.before if self.open else self.past
        self.before, self.open = deepcopy(self.past), list(tokens)


class OwnMemory:
    """A memory for each row, as the model itself keeps it.

    Args:
        reader: reads accepted tokens again.
        rows: number of sequences B.
        device: of the tokens.
    """

    def __init__(self, reader: OneRow, rows: int, device: torch.device) -> None:
        """Start with empty rows."""
        self._reader = reader
        self._device = device
        self.rows = [MemoryRow() for _ in range(rows)]

    @property
    def lengths(self) -> Tensor:
        """Return `(B,)`: tokens that each row has read and kept."""
        return torch.tensor([len(row.read) for row in self.rows], device=self._device)

    def advance(self, counts: Tensor | int) -> None:
        """Keep the first `counts` tokens of each row's last reading, and take back the others."""
        each = [counts] * len(self.rows) if isinstance(counts, int) else counts.tolist()
        for row, count in zip(self.rows, each, strict=True):
            kept = row.open[:count]
            if count < len(row.open):
                row.past = row.before
                self._reader.again(torch.tensor([kept], device=self._device), row)
            row.read += kept
            row.before, row.open = None, []

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and put them in this order."""
        self.rows = [self.rows[row] for row in rows]

    def replace(self, rows: Sequence[int], other: "OwnMemory") -> None:
        """Put another memory's rows in the place of these."""
        for row, given in zip(rows, other.rows, strict=True):
            self.rows[row] = given


def padded_states(states: Tensor, length: int) -> Tensor:
    """Return states `(B, T, …)` with zeros on the right, up to a length."""
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
