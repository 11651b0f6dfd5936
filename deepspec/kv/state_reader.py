"""All rows in one pass, over keys, values and states of our own.

Legend: B rows, Q tokens a row is given, T tokens of the longest prompt, A captured layers, D hidden size.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepspec.errors import TargetError
from deepspec.kv.memory import ReadingWay, StatesRead, joined, padded_states, read_at_once
from deepspec.kv.own_states import OwnStates, own_memory
from deepspec.kv.states import StateCache, States
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.reading import memory_name

STATES: tuple[ReadingWay, ...] = ("states", "steps")

_LISTS = ("layer_types", "layers_block_type")
_ATTENTION = ("full_attention", "hybrid")
_SLIDING = ("sliding_attention", "hybrid_sliding")
_UNMASKED = ("linear_attention", "conv", "mlp", "moe")


class StatesReader:
    """Rows of any lengths in one pass; prompts, and accepted tokens that are read again, those of one length together.

    Args:
        target: whose model takes a memory of ours and a mask for each kind of layer, or has no attention.
        layers: ids of the layers whose states are captured.
        way: whether tokens behind a state are read in one pass, or one by one.

    Raises:
        TargetError: its config does not say which of its layers have the window that it names.
    """

    def __init__(self, target: Target, layers: Sequence[int], way: ReadingWay) -> None:
        """Look up what the model calls its memory, and its kinds of layers."""
        self.way: ReadingWay = way
        self._target, self._layers = target, layers
        self._dtype = target.head_weight.dtype
        self._past = memory_name(target.decoder)
        self._placed = "position_ids" in inspect.signature(target.decoder.forward).parameters
        self._windows = _windows(target)

    @cached_property
    def _memory(self) -> tuple[OwnStates | None, type[StateCache]]:
        """Return what stands between states and what the model takes, and of which class our memory has to be."""
        return own_memory(self._target, self._past)

    def memory(self, rows: int, capacity: int) -> StateCache:
        """Return the memory of empty rows that have room for some tokens."""
        return self._memory[1](rows, capacity, self._target.device, self)

    def prompts(self, prompts: Sequence[Sequence[int]], memory: StateCache) -> StatesRead:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""
        longest = max(len(prompt) for prompt in prompts)
        found: list[StatesRead | None] = [None] * len(prompts)
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            states, last = self._prompts([prompts[row] for row in rows], rows, memory)
            for place, row in enumerate(rows):
                found[row] = (
                    padded_states(states[place : place + 1], longest),
                    padded_states(last[place : place + 1], longest),
                )
        read = [each for each in found if each is not None]
        return torch.cat([states for states, _ in read]), torch.cat([last for _, last in read])

    def _prompts(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], memory: StateCache) -> StatesRead:
        """Read prompts of one length into some rows: long ones in pieces, where a state is read behind at all."""
        masks = len(set(self._windows.values())) if self.way == "states" else 0
        width, read = read_at_once(len(rows), len(prompts[0]), masks, self._dtype), list[StatesRead]()
        for piece in torch.split(torch.tensor(prompts, device=self._target.device), width, dim=1):
            memory.begin(piece, rows)
            read.append(self._pass(piece, memory, 0, self._layers))
            memory.advance(piece.shape[1])
        return joined(read)

    def behind(self, tokens: Tensor, memory: StateCache) -> StatesRead:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""
        memory.begin(tokens)
        return self._read(tokens, memory, self._layers)

    def again(self, tokens: Tensor, cache: StateCache) -> None:
        """Read `(b, Q)` tokens behind the rows that `begin` has chosen, for the memory alone."""
        self._read(tokens, cache, ())

    def _read(self, tokens: Tensor, memory: StateCache, layers: Sequence[int]) -> StatesRead:
        width = tokens.shape[1] if self.way == "states" else 1
        pieces = torch.split(tokens, width, dim=1)
        return joined([self._pass(piece, memory, place * width, layers) for place, piece in enumerate(pieces)])

    @torch.inference_mode()
    def _pass(self, tokens: Tensor, memory: StateCache, ahead: int, layers: Sequence[int]) -> StatesRead:
        places = memory.open(tokens.shape[1], ahead)
        own, _ = self._memory
        if own is not None:
            states, last, memory.states = self._own_pass(tokens, memory.states, own, layers)
            memory.passed(ahead + tokens.shape[1])
            return states, last
        given: dict[str, Any] = {self._past: memory, "use_cache": True}
        given |= {"position_ids": places} if self._placed else {}
        given |= {"attention_mask": self._masks(memory)} if self._windows else {}
        states, last, _ = observe(self._target.reading, tokens, layers, **given)
        memory.passed(ahead + tokens.shape[1])
        return states, last

    def _own_pass(
        self, tokens: Tensor, before: States, own: OwnStates, layers: Sequence[int]
    ) -> tuple[Tensor, Tensor, States]:
        """Read tokens behind states that the model wants in its own form; one token a row alone, where it must be."""
        rows = 1 if own.alone and tokens.shape[1] == 1 else len(tokens)
        read, behind = list[StatesRead](), list[States]()
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            past = own.given({key: value[part] for key, value in before.items()})
            states, last, told = observe(
                self._target.reading, tokens[part], layers, use_cache=True, **{self._past: past}
            )
            read.append((states, last))
            behind.append(own.taken(told[self._past]))
        after = {key: torch.cat([each[key] for each in behind]) for key in behind[0]}
        return torch.cat([states for states, _ in read]), torch.cat([last for _, last in read]), after

    def _masks(self, memory: StateCache) -> Mapping[str, Tensor | None]:
        """Return a mask for each kind of layer: none for states, for no row is padded."""
        masks = {window: self._additive(memory.causal_mask(window)) for window in set(self._windows.values())}
        return {**dict.fromkeys(_UNMASKED), **{kind: masks[window] for kind, window in self._windows.items()}}

    def _additive(self, seen: Tensor) -> Tensor:
        least = torch.finfo(self._dtype).min
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill_(~seen, least)


def _windows(target: Target) -> Mapping[str, int | None]:
    """Return kind of layer with attention -> window; empty where no layer has attention."""
    config: Any = target.model.config.get_text_config().to_dict()
    window = config.get("sliding_window")
    listed = {str(kind) for name in _LISTS for kind in config.get(name) or ()}
    if window is not None and not listed & {*_SLIDING}:
        raise TargetError(f"target {target.folder}: which of its layers have its window of {window} is not said")
    if config.get("num_attention_heads") is None:
        return {}
    return {**dict.fromkeys(_ATTENTION), **(dict.fromkeys(_SLIDING, window) if window is not None else {})}
