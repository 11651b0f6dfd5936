"""How a target reads tokens behind what it remembers: the fastest way that gives what one whole pass gives.

    rows     all rows in one pass, over keys and values of our own (RowCache)
    chunks   a row at a time over the model's own memory, all new tokens in one pass
    tokens   the same, one token a pass: some state-space models read no more behind a state
    whole    a row at a time without memory: everything is read again; always right

Families of the table read by rows. Of any other target the ways are tried in this order when it begins to decode.

Legend: B rows, Q tokens a row is given, T tokens of the longest prompt, A captured layers, D hidden size.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from deepspec.errors import TargetError
from deepspec.families.remembers import own_limits
from deepspec.kv.fused import Fused
from deepspec.kv.memory import Memory, MemoryRow, OwnMemory
from deepspec.kv.rows import RowCache
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.proof import allowed, distance
from deepspec.target.reading import probe_ids

Way = Literal["rows", "chunks", "tokens", "whole"]
OWN: tuple[Way, ...] = ("chunks", "tokens", "whole")
States = tuple[Tensor, Tensor]
"""Captured states `(B, Q, A·D)` and last states `(B, Q, D)`."""

_KINDS = frozenset({"full_attention", "sliding_attention"})
_PASTS = ("past_key_values", "cache_params", "state")
"""What decoders call their memory, in arguments and outputs."""

_CANNOT = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models raise that are given a memory, or masks, of a kind that they do not know."""


class MemoryReader(Protocol):
    """One way to read."""

    way: Way

    def memory(self, rows: int, capacity: int) -> Any:
        """Return the memory of empty rows that have room for some tokens."""

    def prompts(self, prompts: Sequence[Sequence[int]], memory: Any) -> States:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""

    def behind(self, tokens: Tensor, memory: Any) -> States:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""


class RowsReader:
    """All rows in one pass, over keys and values of our own."""

    way: Way = "rows"

    def __init__(self, target: Target, layers: Sequence[int], *, fused: bool = True) -> None:
        """Look up which masks the model takes; `fused`: passes of fixed shapes take fewer kernels (fused.py).

        Raises:
            TargetError: it has layers that keep something else than keys and values.
        """
        self._target, self._layers = target, layers
        self._dtype = target.head_weight.dtype
        self._windows, self._window = _windows(target), _window(target)
        self._fuses = fused

    @cached_property
    def _fused(self) -> Callable[[], AbstractContextManager[None]]:
        """Return what lets the model compute in fewer kernels, where passes are recorded."""
        return Fused(self._target.decoder) if self._fuses else nullcontext

    def memory(self, rows: int, capacity: int) -> RowCache:
        """Return the memory of empty rows that have room for some tokens."""
        return RowCache(rows, capacity, self._target.device)

    def prompts(self, prompts: Sequence[Sequence[int]], memory: RowCache) -> States:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._target.device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        states = self.behind(ids.to(self._target.device), memory)
        memory.advance(lengths)
        return states

    @torch.inference_mode()
    def behind(self, tokens: Tensor, memory: RowCache) -> States:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""
        positions = memory.open(tokens.shape[1])
        inputs = {"position_ids": positions, "past_key_values": memory, "use_cache": True}
        with self._fused() if memory.fixed else nullcontext():
            states, last, _ = observe(
                self._target.reading, tokens, self._layers, attention_mask=self._masks(memory), **inputs
            )
        return states, last

    def _masks(self, memory: RowCache) -> Any:
        """Return what transformers takes: nothing where its own default is right, a mask, or one per kind of layer."""
        if not self._windows:
            return None if memory.plainly_causal else self._additive(memory, self._window)
        return {kind: self._additive(memory, window) for kind, window in self._windows.items()}

    def _additive(self, memory: RowCache, window: int | None) -> Tensor:
        seen = memory.causal_mask(window)
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill_(
            ~seen, torch.finfo(self._dtype).min
        )


class OwnReader:
    """One row after another, over whatever the model itself keeps."""

    def __init__(self, target: Target, layers: Sequence[int], way: Way) -> None:
        """Look up what the model calls its memory."""
        self.way: Way = way
        self._target, self._layers = target, layers
        taken = inspect.signature(target.decoder.forward).parameters
        self._past = next((name for name in _PASTS if name in taken), "")
        self._placed = "position_ids" in taken

    def memory(self, rows: int, capacity: int) -> OwnMemory:
        """Return the memory of empty rows; it takes what room it needs."""
        del capacity
        return OwnMemory(self, rows, self._target.device)

    def prompts(self, prompts: Sequence[Sequence[int]], memory: OwnMemory) -> States:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""
        longest = max(len(prompt) for prompt in prompts)
        found = [self._row(torch.tensor([list(prompt)]), row) for prompt, row in zip(prompts, memory.rows, strict=True)]
        memory.advance(torch.tensor([len(prompt) for prompt in prompts]))
        states, last = zip(*([_padded(each, longest) for each in pair] for pair in found), strict=True)
        return torch.cat(states), torch.cat(last)

    def behind(self, tokens: Tensor, memory: OwnMemory) -> States:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""
        found = [self._row(ids[None], row) for ids, row in zip(tokens, memory.rows, strict=True)]
        return torch.cat([states for states, _ in found]), torch.cat([last for _, last in found])

    @torch.inference_mode()
    def again(self, tokens: Tensor, kept: MemoryRow) -> None:
        """Read `(1, Q)` tokens once more, for the memory alone."""
        if self.way != "whole" and tokens.shape[1]:
            self._read(tokens, kept, ())

    @torch.inference_mode()
    def _row(self, tokens: Tensor, row: MemoryRow) -> States:
        ids = tokens.to(self._target.device)
        row.begin(ids[0].tolist())
        if self.way != "whole":
            return self._read(ids, row, self._layers)
        everything = torch.tensor([[*row.read, *row.open]], device=ids.device)
        states, last, _ = observe(self._target.reading, everything, self._layers)
        return states[:, len(row.read) :], last[:, len(row.read) :]

    def _read(self, ids: Tensor, row: MemoryRow, layers: Sequence[int]) -> States:
        """Read tokens behind a row: at once, or one by one where its memory is not empty."""
        whole = self.way == "chunks" or row.past is None
        places = torch.arange(len(row.read), len(row.read) + ids.shape[1], device=ids.device)[None]
        width = ids.shape[1] if whole else 1
        pairs = zip(torch.split(ids, width, dim=1), torch.split(places, width, dim=1), strict=True)
        pieces = [self._pass(piece, place, row, layers) for piece, place in pairs]
        return torch.cat([states for states, _ in pieces], 1), torch.cat([last for _, last in pieces], 1)

    def _pass(self, ids: Tensor, places: Tensor, row: MemoryRow, layers: Sequence[int]) -> States:
        given = {} if row.past is None else {self._past: row.past}
        given |= {"position_ids": places} if self._placed else {}
        states, last, output = observe(self._target.reading, ids, layers, use_cache=True, **given)
        row.past = output[self._past]
        return states, last


def reader_for(target: Target, layers: Sequence[int], *, fused: bool = True) -> MemoryReader:
    """Return how a target reads; `fused` as for `RowsReader`.

    Raises:
        TargetError: it is of a family of the table, and has layers that keep something else than keys and values.
    """
    if not target.shape.general or _rows_serve(target):
        return RowsReader(target, layers, fused=fused)
    way = next((way for way in OWN if _serves(OwnReader(target, (), way), target)), OWN[-1])
    return OwnReader(target, layers, way)


def _rows_serve(target: Target) -> bool:
    """Return whether all rows can be read in one pass: masks of ours must say all that limits what a position sees."""
    if own_limits(target.model.config.get_text_config().to_dict()):
        return False  # a short trial would not reach the limit
    try:
        return _serves(RowsReader(target, ()), target)
    except TargetError:
        return False


@torch.inference_mode()
def _serves(reader: MemoryReader, target: Target) -> bool:
    """Return whether tokens read in pieces, some of them taken back, give the states of one pass over all."""
    ids = probe_ids(target.model)[0]
    prompts, other = [ids[:5].tolist(), ids[:3].tolist()], ids.flip(0)
    try:
        memory: Memory = reader.memory(2, 2 * len(ids))
        reader.prompts(prompts, memory)
        first = torch.stack([torch.cat([ids[5:6], other[:2]]), ids[3:6]])
        reader.behind(first, memory)
        memory.advance(torch.tensor([1, 3], device=ids.device))
        _, last = reader.behind(torch.stack([ids[6:9], ids[6:9]]), memory)
    except _CANNOT:
        return False
    _, whole, _ = observe(target.reading, ids[None, :9], ())
    return distance(last, whole[:, 6:].expand(2, -1, -1)) <= allowed(last.dtype)


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


def _windows(target: Target) -> Mapping[str, int | None]:
    """Return kind of attention -> window, for models that take a mask per kind; empty where one mask serves all."""
    config: Any = target.model.config.get_text_config().to_dict()
    kinds = set(config.get("layer_types") or ())
    if not kinds <= _KINDS:
        unknown = ", ".join(sorted(kinds - _KINDS))
        raise TargetError(f"target {target.folder}: layers of kind {unknown} cannot take back rejected tokens")
    if kinds <= {"full_attention"}:
        return {}
    return {kind: config["sliding_window"] if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _window(target: Target) -> int | None:
    """Return the window of a model that has one for all its layers and names no kinds."""
    config: Any = target.model.config.get_text_config().to_dict()
    return None if config.get("layer_types") or not target.shape.general else config.get("sliding_window")
