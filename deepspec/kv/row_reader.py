"""All rows in one pass, over keys and values of our own.

Legend: B rows, Q tokens a row is given, T tokens of the longest prompt, A captured layers, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepspec.errors import TargetError
from deepspec.kv.fused import Fused
from deepspec.kv.memory import ReadingWay, StatesRead, joined, read_at_once
from deepspec.kv.rows import RowCache
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.reading import memory_name

_KINDS = frozenset({"full_attention", "sliding_attention"})


class RowsReader:
    """All rows in one pass, over keys and values of our own."""

    way: ReadingWay = "rows"

    def __init__(self, target: Target, layers: Sequence[int], *, fused: bool = True) -> None:
        """Look up which masks the model takes; `fused`: passes of fixed shapes take fewer kernels (fused.py).

        Raises:
            TargetError: it has layers that keep something else than keys and values.
        """
        self._target, self._layers = target, layers
        self._past, self._dtype = memory_name(target.decoder), target.head_weight.dtype
        self._windows, self._window = _windows(target), _window(target)
        self._fuses = fused

    @cached_property
    def _fused(self) -> Callable[[], AbstractContextManager[None]]:
        """Return what lets the model compute in fewer kernels, where passes are recorded."""
        return Fused(self._target.decoder) if self._fuses else nullcontext

    def memory(self, rows: int, capacity: int) -> RowCache:
        """Return the memory of empty rows that have room for some tokens."""
        return RowCache(rows, capacity, self._target.device)

    def prompts(self, prompts: Sequence[Sequence[int]], memory: RowCache) -> StatesRead:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._target.device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        width = read_at_once(len(ids), ids.shape[1], self._mask_count, self._dtype)
        read, start = list[StatesRead](), 0
        for piece in torch.split(ids, width, dim=1):
            read.append(self.behind(piece.to(self._target.device), memory))
            memory.advance((lengths - start).clamp(0, piece.shape[1]))
            start += piece.shape[1]
        return joined(read)

    @property
    def _mask_count(self) -> int:
        """Return how many masks a pass over long prompts takes."""
        return len(self._windows) or int(self._window is not None)

    @torch.inference_mode()
    def behind(self, tokens: Tensor, memory: RowCache) -> StatesRead:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""
        positions = memory.open(tokens.shape[1])
        inputs = {"position_ids": positions, self._past: memory, "use_cache": True}
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
