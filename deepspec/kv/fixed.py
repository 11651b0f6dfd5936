"""The same keys and values in shapes that do not change, for passes that are recorded once and replayed.

The host says how many rows a pass has and how many positions it looks at; which of them a row really has is known on
the device alone. Nothing is read back, and everything stays where it is in memory: what a recorded pass wrote to and
read from is what the next one writes to and reads from.

Legend: B rows, Q open positions, S slots, H heads, d head size.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from deepspec.kv.rows import RowCache
from deepspec.models.config import WindowForm

STEP = 128
"""Positions are looked at in multiples of this at least: a multiple of what attention kernels want of a mask."""
SPANS_PER_OCTAVE = 4


def span_of(positions: int) -> int:
    """Return how many positions a pass looks at that needs some: at most a quarter more, or the next `STEP`."""
    step = max(STEP, (1 << (positions.bit_length() - 1)) // SPANS_PER_OCTAVE)
    return -(-positions // step) * step


def rows_for(rows: int, most: int) -> int:
    """Return how many rows a pass has for some that are decoded: a power of two, and no more than there are."""
    return min(1 << (rows - 1).bit_length(), most)


class FixedCache(RowCache):
    """A row cache of fixed shapes: rows that are not decoded are passed, too, and never grow.

    Args:
        rows: sequences that it has room for.
        capacity: positions that the longest row may ever take.
        device: of the keys and values.
    """

    fixed = True

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        """Start with empty rows, all of them in a pass over all positions."""
        super().__init__(rows, capacity, device)
        self._lengths = self.lengths
        self._taken = torch.zeros_like(self._lengths)
        self._firsts = torch.arange(rows, device=device) * capacity
        self._places = torch.zeros(0, dtype=torch.int64, device=device)
        self.shape(rows, capacity)

    def shape(self, rows: int, span: int) -> None:
        """Choose the rows and positions of the next passes."""
        self._rows, self._end = rows, span
        self.lengths = self._lengths[:rows]

    def open(self, width: int, ahead: int = 0) -> Tensor:
        """Return the positions of the next Q entries of each row, `(B, Q)`; they have to lie within the span."""
        ahead_of = torch.arange(ahead, ahead + width, device=self.lengths.device)
        self._positions = self.lengths[:, None] + ahead_of
        self._places = (self._positions + self._firsts[: self._rows, None]).flatten()
        return self._positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `(B, H, Q, d)` keys and values at the open positions; return the whole span, `(B, H, S, d)` each."""
        if layer_idx not in self._stored:
            self._stored[layer_idx] = (self._room(key_states), self._room(value_states))
        keys, values = self._stored[layer_idx]
        return self._put(keys, key_states), self._put(values, value_states)

    def advance(self, counts: Tensor | int) -> None:
        """Keep the first `counts` entries of each decoded row's last write."""
        self.lengths.add_(self._taken[: self._rows] * counts)

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a tensor `(B, …)` with the rows of a pass."""
        if name not in self._beside:
            self._beside[name] = value.new_zeros(len(self._lengths), *value.shape[1:])
        self._beside[name][: self._rows].copy_(value)

    def held(self, name: str) -> Tensor:
        """Return what is kept with the rows of a pass under a name."""
        return self._beside[name][: self._rows]

    @property
    def plainly_causal(self) -> bool:
        """Whether no mask is needed: never, a row may be shorter than the span."""
        return False

    def near_from(self, window: int | None) -> int:
        """Return 0: how far a row's window reaches back is known on the device alone, and masks say it."""
        del window
        return 0

    def draft_mask(self, window: int | None = None) -> Tensor:
        """Return `causal_mask`: a row may be shorter than the span."""
        return self.causal_mask(window)

    def block_mask(self, window_form: WindowForm = "slot", window: int | None = None) -> Tensor:
        """Return what a row's open positions see, `(B, 1, Q, S)` bool: through the last of them, in their windows."""
        return self._seen_of(torch.arange(self._end, device=self._positions.device), window_form, window)

    def adopt(self, other: RowCache) -> None:
        """Hold the rows of a cache instead of all that is here; they have to fit."""
        self._lengths.zero_()
        for layer, pair in other._stored.items():
            self._stored.setdefault(layer, (self._room(pair[0]), self._room(pair[1])))
        for name in other._beside:
            self.hold(name, other.held(name).new_zeros(self._rows, *other.held(name).shape[1:]))
        count = len(other.lengths)
        self.replace(range(count), other)
        self._take(count)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and put them in this order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        tensors = [*(each for pair in self._stored.values() for each in pair), *self._beside.values(), self._lengths]
        for each in tensors:
            each[: len(rows)] = each[index]
        self._take(len(rows))

    def replace(self, rows: Sequence[int], other: RowCache) -> None:
        """Put the rows of a cache that grows in the place of these."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        self._lengths[index] = other.lengths
        length = int(other.lengths.max())
        for layer, pair in self._stored.items():
            for mine, theirs in zip(pair, other._stored[layer], strict=True):
                mine[index, :length] = theirs[:, :, :length].transpose(1, 2)
        for name, value in self._beside.items():
            value[index] = other.held(name)

    def _take(self, count: int) -> None:
        """Decode the first rows; the others stay empty."""
        self._lengths[count:] = 0
        self._taken.zero_()
        self._taken[:count] = 1

    def _room(self, like: Tensor) -> Tensor:
        """Return zeros `(B, S, H, d)`: a hidden slot's weight is 0, and 0 times a stray NaN would not be."""
        _, heads, _, size = like.shape
        return like.new_zeros(len(self._lengths), self.capacity, heads, size)

    def _put(self, buffer: Tensor, new: Tensor) -> Tensor:
        buffer.flatten(0, 1).index_copy_(0, self._places, new.transpose(1, 2).flatten(0, 1))
        return buffer[: self._rows, : self._end].transpose(1, 2)


class CachedRows:
    """Rows of a proposer that are all in a cache."""

    def __init__(self, cache: RowCache) -> None:
        """Keep the cache."""
        self._cache = cache

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._cache.keep(rows)

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another's rows in the place of these."""
        self._cache.replace(rows, other._cache)

    def adopt(self, other: Self) -> None:
        """Hold another's rows instead, in fixed shapes."""
        self._fixed.adopt(other._cache)

    def shape(self, rows: int, span: int) -> None:
        """Choose the rows and positions of the next passes."""
        self._fixed.shape(rows, span)

    @property
    def _fixed(self) -> FixedCache:
        if not isinstance(self._cache, FixedCache):
            raise RuntimeError("these rows grow; ask for rows of fixed shapes")
        return self._cache
