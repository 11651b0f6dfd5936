"""Keys and values of many sequences, each row with a length of its own.

The slot of an entry *is* its position. So nothing is padded on the left, taking back rejected tokens is setting a
length, and whatever lies beyond a row's length is masked until it is overwritten. Sliding-window layers keep all
entries and get their window from the mask: a cache that forgets could not take tokens back. Those of a draft are shown
no more of them than some row's window reaches.

Legend: B rows, Q open positions, S slots, H heads, d head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepspec.attention.attention import KeyValue
from deepspec.models.config import WindowForm


class RowCache:
    """A key/value cache with ragged rows, for drafts and, as their memory, for transformers models.

    What else belongs to each row, a draft's last output say, is held beside it and goes where the row goes.

    Use: `positions = cache.open(Q)`, a forward pass in which every layer calls `update`, then `cache.advance(counts)`.

    Args:
        rows: number of sequences B.
        capacity: positions that the longest row may ever take.
        device: of the keys and values.
    """

    fixed = False
    """Whether shapes never change and nothing is read from the device (fixed.py)."""

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        """Start with empty rows; memory is taken when a layer first writes."""
        self.capacity = capacity
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        """`(B,)`: valid positions of each row."""
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._beside: dict[str, Tensor] = {}
        self._positions = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        self._start, self._end, self._aligned = 0, 0, True

    def open(self, width: int, ahead: int = 0) -> Tensor:
        """Make room for the next Q entries of each row and return their positions, `(B, Q)`.

        Args:
            width: Q.
            ahead: positions before them that were written and not kept.
        """
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        self._start, self._end, self._aligned = shortest + ahead, longest + ahead + width, shortest == longest
        self._positions = self.lengths[:, None] + torch.arange(ahead, ahead + width, device=self.lengths.device)
        return self._positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `(B, H, Q, d)` keys and values at the open positions; return all, `(B, H, S, d)` each."""
        if layer_idx not in self._stored:
            self._stored[layer_idx] = (self._room(key_states), self._room(value_states))
        keys, values = self._stored[layer_idx]
        self._write(keys, key_states)
        self._write(values, value_states)
        return keys[:, :, : self._end], values[:, :, : self._end]

    def advance(self, counts: Tensor | int) -> None:
        """Keep the first `counts` entries of each row's last write."""
        self.lengths = self.lengths + counts

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a tensor `(B, …)` with the rows."""
        self._beside[name] = value

    def held(self, name: str) -> Tensor:
        """Return what is kept with the rows under a name."""
        return self._beside[name]

    def as_context(self, windows: Sequence[int | None]) -> "list[CachedLayer]":
        """Return layers of given windows, each as a draft's context: of one with a window what `near_from` leaves."""
        return [CachedLayer(self, layer, window) for layer, window in enumerate(windows)]

    def near_from(self, window: int | None) -> int:
        """Return the first slot that some open position sees through a window."""
        return 0 if window is None else max(0, self._start - window + 1)

    @property
    def plainly_causal(self) -> bool:
        """Whether the open positions need no mask of their own: one new position, or a first chunk, in every row."""
        return self._aligned and (self._positions.shape[1] == 1 or self._end == self._positions.shape[1])

    def causal_mask(self, window: int | None = None) -> Tensor:
        """Return what each open position sees: itself and what is before it, in its window.

        Args:
            window: positions that a sliding-window layer sees, the query's own included.

        Returns:
            `(B, 1, Q, S)` bool.
        """
        last = self._positions[:, None, :, None]
        slots = torch.arange(self._end, device=last.device)
        return (slots <= last) if window is None else (slots <= last) & (slots > last - window)

    def draft_mask(self, window: int | None = None) -> Tensor | None:
        """Return `causal_mask` over the slots that a draft's layer is shown; None: it may read them all."""
        if self._aligned and self._positions.shape[1] == 1:
            return None
        return self.causal_mask(window)[..., self.near_from(window) :]

    def block_mask(self, window_form: WindowForm = "slot", window: int | None = None) -> Tensor | None:
        """Return what the open positions of a row, a block, see of the slots that a draft's layer is shown.

        Args:
            window_form: what a window is.
            window: positions that each sees, its own among them (`DraftConfig.reaches`); None: all.

        Returns:
            `(B, 1, Q, S)` bool: everything through the last of them, in their windows; None: every slot.
        """
        far = window is not None and (self._end > window or window_form == "causal")
        if self._aligned and not far:
            return None
        slots = torch.arange(self.near_from(window), self._end, device=self._positions.device)
        return self._seen_of(slots, window_form, window)

    def _seen_of(self, slots: Tensor, window_form: WindowForm, window: int | None) -> Tensor:
        """Return what the open positions, a block, see of slots, `(B, 1, Q, S)` bool."""
        own = self._positions[:, None, :, None]
        last = self._positions[:, None, -1:, None].expand_as(own)
        if window is None:
            return slots <= last
        first = own if window_form == "slot" else self._positions[:, None, :1, None]
        return (slots <= (own if window_form == "causal" else last)) & (slots > first - window)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and put them in this order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        self.lengths = self.lengths[index]
        self._stored = {
            layer: (keys[index.to(keys.device)], values[index.to(values.device)])
            for layer, (keys, values) in self._stored.items()
        }
        self._beside = {name: value[index] for name, value in self._beside.items()}

    def replace(self, rows: Sequence[int], other: "RowCache") -> None:
        """Put another cache's rows in the place of these; it holds at most as many positions as there is room."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.lengths.device)
        self.lengths[index] = other.lengths
        length = int(other.lengths.max())
        for layer, pair in self._stored.items():
            for mine, theirs in zip(pair, other._stored[layer], strict=True):
                mine[index.to(mine.device), :, :length] = theirs[:, :, :length]
        for name, value in self._beside.items():
            value[index] = other.held(name)

    def get_query_offset(self, _layer: int = 0) -> int:
        """Return the longest row's first open position; asked by transformers where `plainly_causal`."""
        return self._end - self._positions.shape[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the same; asked by models that take positions of ours and a length of their own."""
        return self.get_query_offset(layer)

    def get_mask_sizes(self, _queries: int, _layer: int) -> tuple[int, int]:
        """Return S and the first slot; asked by transformers where `plainly_causal`."""
        return self._end, 0

    def _room(self, like: Tensor) -> Tensor:
        """Return zeros: a hidden slot's weight is 0, and 0 times a stray NaN would not be."""
        rows, heads, _, size = like.shape
        return like.new_zeros(rows, heads, self.capacity, size)

    def _write(self, buffer: Tensor, new: Tensor) -> None:
        if self._aligned:
            buffer[:, :, self._start : self._end] = new
        else:
            rows = torch.arange(len(new), device=new.device)[:, None]
            buffer[rows, :, self._positions.to(new.device)] = new.transpose(1, 2)


class CachedLayer:
    """One layer of a row cache, as a draft's context."""

    def __init__(self, cache: RowCache, layer: int, window: int | None) -> None:
        """Keep which of the cache's layers it is, and its window."""
        self._cache, self._layer, self._window = cache, layer, window

    def append(self, other: KeyValue, /) -> KeyValue:
        """Return everything kept that a row's window reaches, with another chunk behind it."""
        keys, values = self._cache.update(other.key, other.value, self._layer)
        first = self._cache.near_from(self._window)
        return KeyValue(keys[:, :, first:], values[:, :, first:])
