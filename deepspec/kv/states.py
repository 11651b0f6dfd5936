"""Keys and values of ragged rows and, beside them, states that give no tokens back: of state space, linear attention,
convolutions.

A state has one size however long its row is, so rows of any lengths lie in one tensor. Nothing can be cut off it: the
states of the round's beginning stay as they are until it is known what is accepted. A row that keeps everything takes
the states of the reading. The others read their accepted tokens once more behind the beginning, in one short pass for
all rows that kept as many: there is no padding, which a state would take for tokens. Where a model reads one token a
pass, the states behind each token are there already, and each row takes its own.

Legend: B rows, b rows of a reading, Q tokens a row is given.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from deepspec.kv.rows import RowCache

States = dict[tuple[str, int, int], Tensor]
"""Kind of state, layer, number within the layer -> `(B, …)`."""


class Again(Protocol):
    """Reads tokens behind what a cache holds."""

    def again(self, tokens: Tensor, cache: "StateCache") -> None:
        """Read `(b, Q)` tokens behind the rows that `begin` has chosen, for the memory alone."""


class StateCache(RowCache):
    """What transformers models take as their memory: keys and values, and states.

    Use: `begin(tokens)`; `open(…)`, a pass and `passed(…)` for all tokens, or for one after another; then
    `advance(counts)`.

    Args:
        rows: number of sequences B.
        capacity: positions that the longest row may ever take.
        device: of all that it holds.
        reader: reads accepted tokens again.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device, reader: Again) -> None:
        """Start with empty rows."""
        super().__init__(rows, capacity, device)
        self._reader = reader
        self._kept: States = {}
        """As they were when the reading began; never written to."""
        self._open: States = {}
        """Of the rows of this reading; the model writes to them."""
        self._behind: dict[int, States] = {}
        """Number of tokens of this reading -> the states behind them."""
        self.tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        """`(b, Q)` of this reading."""
        self._chosen: Tensor | None = None

    def begin(self, tokens: Tensor, rows: Sequence[int] | None = None) -> None:
        """Begin to read `(b, Q)` tokens behind some rows, or all; a reading that was never kept is taken back."""
        self._chosen = None if rows is None else torch.tensor(rows, device=self.lengths.device)
        self.tokens, self._behind = tokens, {}
        begun = bool(self._of_rows(self.lengths).any())
        self._open = {key: self._of_rows(value).clone() for key, value in self._kept.items()} if begun else {}

    def open(self, width: int, ahead: int = 0) -> Tensor:
        """Make room for the next Q tokens of the rows of this reading and return their positions, `(b, Q)`.

        Args:
            width: Q.
            ahead: tokens of this reading that were passed before.
        """
        lengths = self._of_rows(self.lengths)
        shortest, longest = int(lengths.min()), int(lengths.max())
        self._start, self._end, self._aligned = shortest + ahead, longest + ahead + width, shortest == longest
        self._positions = lengths[:, None] + torch.arange(ahead, ahead + width, device=lengths.device)
        return self._positions

    def passed(self, count: int) -> None:
        """Note the states behind the first `count` tokens of this reading, which the model has passed."""
        self._behind[count] = self._open
        if count < self.tokens.shape[1]:
            self._open = {key: value.clone() for key, value in self._open.items()}

    def advance(self, counts: Tensor | int) -> None:
        """Keep the first `counts` tokens of each row of this reading, and take back the others."""
        each = [counts] * len(self.tokens) if isinstance(counts, int) else counts.tolist()
        tokens, behind, chosen = self.tokens, self._behind, self._chosen
        places = range(len(self.lengths)) if chosen is None else chosen.tolist()
        found = []
        for count in sorted(set(each) - {0}):
            among = [place for place, own in enumerate(each) if own == count]
            rows = [places[place] for place in among]
            if count in behind:
                found.append((rows, {key: value[among] for key, value in behind[count].items()}))
            else:
                found.append((rows, self._read_again(tokens[among, :count], rows)))
        for rows, states in found:
            self._put(rows, states)
        self.lengths = self.lengths.clone()
        self.lengths[list(places)] += torch.tensor(each, device=self.lengths.device)
        self._chosen, self._open, self._behind = None, {}, {}

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and put them in this order."""
        super().keep(rows)
        self._kept = {key: value[list(rows)] for key, value in self._kept.items()}

    def replace(self, rows: Sequence[int], other: "StateCache") -> None:  # type: ignore[override]  # of its own kind
        """Put another cache's rows in the place of these; it holds at most as many positions as there is room."""
        super().replace(rows, other)
        self._put(rows, other._kept)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `(b, H, Q, d)` keys and values at the open positions; return all of these rows, `(b, H, S, d)` each."""
        if self._chosen is None:
            return super().update(key_states, value_states, layer_idx)
        if layer_idx not in self._stored:
            self._stored[layer_idx] = (self._room(key_states), self._room(value_states))
        keys, values = self._stored[layer_idx]
        chosen, positions = self._chosen.to(keys.device), self._positions.to(keys.device)
        for buffer, new in ((keys, key_states), (values, value_states)):
            buffer[chosen[:, None], :, positions] = new.transpose(1, 2)
        return keys[chosen, :, : self._end], values[chosen, :, : self._end]

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the last inputs of a convolution; None before the first token."""
        return self._open.get(("conv", layer_idx, state_idx))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Keep the last of a convolution's inputs `(b, …, Q)`; return them behind those before, or behind zeros."""
        key = ("conv", layer_idx, state_idx)
        before = self._open.get(key)
        size = conv_kernel_size or (conv_states if before is None else before).shape[-1]
        missing = max(0, size - conv_states.shape[-1])
        start = conv_states.new_zeros(*conv_states.shape[:-1], missing) if before is None else before
        whole = torch.cat([start, conv_states], -1)
        self._open[key] = whole[..., -size:].clone()
        return whole

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return a state; None before the first token."""
        return self._open.get(("recurrent", layer_idx, state_idx))

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Keep a state, and return it."""
        self._open["recurrent", layer_idx, state_idx] = recurrent_states.clone()
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, *_: Any) -> bool:
        """Return whether a layer has a state of something read before; None: whether any has."""
        return any(layer_idx in (None, layer) for _, layer, _ in self._open)

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """Return a state, as MiniMax asks for it; None before the first token."""
        return self.get_recurrent_state(layer_idx)

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        """Keep a state, as MiniMax gives it."""
        self.update_recurrent_state(linear_cache, layer_idx)

    @property
    def states(self) -> States:
        """The states of this reading, which the model may write to; nothing before the first token."""
        return self._open

    @states.setter
    def states(self, states: States) -> None:
        """Take those behind what was read."""
        self._open = states

    @property
    def layers(self) -> "StatesByLayer":
        """The states of each layer, as models of transformers before 5.21 ask for them."""
        return StatesByLayer(self)

    def is_recording_past(self, _layer: int) -> bool:
        """Return False: what was before is kept here, not in longer states."""
        return False

    def _read_again(self, tokens: Tensor, rows: Sequence[int]) -> States:
        self.begin(tokens, rows)
        self._reader.again(tokens, self)
        return self._open

    def _of_rows(self, value: Tensor) -> Tensor:
        return value if self._chosen is None else value[self._chosen.to(value.device)]

    def _put(self, rows: Iterable[int], states: States) -> None:
        """Put states of rows in their place."""
        for key, value in states.items():
            if key not in self._kept:
                self._kept[key] = value.new_zeros(len(self.lengths), *value.shape[1:])
            self._kept[key][list(rows)] = value

    def _room(self, like: Tensor) -> Tensor:
        """Return zeros for all rows: a hidden slot's weight is 0, and 0 times a stray NaN would not be."""
        _, heads, _, size = like.shape
        return like.new_zeros(len(self.lengths), heads, self.capacity, size)


class LayerStates:
    """The states of one layer, by their number within it; nothing before the first token.

    Args:
        states: of all layers.
        layer: whose they are.
    """

    record_past = False

    def __init__(self, states: States, layer: int) -> None:
        """Take those of the layer."""
        self.conv_states = {
            number: each for (kind, of, number), each in states.items() if (kind, of) == ("conv", layer)
        }
        self.recurrent_states = {
            number: each for (kind, of, number), each in states.items() if (kind, of) == ("recurrent", layer)
        }


class StatesByLayer:
    """What a cache's `layers` are to a model that asks each for its states."""

    def __init__(self, cache: StateCache) -> None:
        """Keep whose states they are."""
        self._cache = cache

    def __getitem__(self, layer: int) -> LayerStates:
        """Return the states of a layer as they are now."""
        return LayerStates(self._cache.states, layer)
