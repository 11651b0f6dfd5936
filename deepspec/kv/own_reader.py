"""One row after another, over whatever the model itself keeps.

Legend: B rows, Q tokens a row is given, T tokens of the longest prompt, A captured layers, D hidden size.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.kv.memory import MemoryRow, OwnMemory, ReadingWay, StatesRead, padded_states
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.reading import memory_name

OWN: tuple[ReadingWay, ...] = ("chunks", "tokens", "whole")


class OwnReader:
    """One row after another, over whatever the model itself keeps."""

    def __init__(self, target: Target, layers: Sequence[int], way: ReadingWay) -> None:
        """Look up what the model calls its memory."""
        self.way: ReadingWay = way
        self._target, self._layers = target, layers
        self._past = memory_name(target.decoder)
        self._placed = "position_ids" in inspect.signature(target.decoder.forward).parameters

    def memory(self, rows: int, capacity: int) -> OwnMemory:
        """Return the memory of empty rows; it takes what room it needs."""
        del capacity
        return OwnMemory(self, rows, self._target.device)

    def prompts(self, prompts: Sequence[Sequence[int]], memory: OwnMemory) -> StatesRead:
        """Read prompts into an empty memory, and keep them; states are padded on the right."""
        longest = max(len(prompt) for prompt in prompts)
        found = [self._row(torch.tensor([list(prompt)]), row) for prompt, row in zip(prompts, memory.rows, strict=True)]
        memory.advance(torch.tensor([len(prompt) for prompt in prompts]))
        states, last = zip(*([padded_states(each, longest) for each in pair] for pair in found), strict=True)
        return torch.cat(states), torch.cat(last)

    def behind(self, tokens: Tensor, memory: OwnMemory) -> StatesRead:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps."""
        found = [self._row(ids[None], row) for ids, row in zip(tokens, memory.rows, strict=True)]
        return torch.cat([states for states, _ in found]), torch.cat([last for _, last in found])

    @torch.inference_mode()
    def again(self, tokens: Tensor, kept: MemoryRow) -> None:
        """Read `(1, Q)` tokens once more, for the memory alone."""
        if self.way != "whole" and tokens.shape[1]:
            self._read(tokens, kept, ())

    @torch.inference_mode()
    def _row(self, tokens: Tensor, row: MemoryRow) -> StatesRead:
        ids = tokens.to(self._target.device)
        row.begin(ids[0].tolist())
        if self.way != "whole":
            return self._read(ids, row, self._layers)
        everything = torch.tensor([[*row.read, *row.open]], device=ids.device)
        states, last, _ = observe(self._target.reading, everything, self._layers)
        return states[:, len(row.read) :], last[:, len(row.read) :]

    def _read(self, ids: Tensor, row: MemoryRow, layers: Sequence[int]) -> StatesRead:
        """Read tokens behind a row: at once, or one by one where its memory is not empty."""
        whole = self.way == "chunks" or row.past is None
        places = torch.arange(len(row.read), len(row.read) + ids.shape[1], device=ids.device)[None]
        width = ids.shape[1] if whole else 1
        pairs = zip(torch.split(ids, width, dim=1), torch.split(places, width, dim=1), strict=True)
        pieces = [self._pass(piece, place, row, layers) for piece, place in pairs]
        return torch.cat([states for states, _ in pieces], 1), torch.cat([last for _, last in pieces], 1)

    def _pass(self, ids: Tensor, places: Tensor, row: MemoryRow, layers: Sequence[int]) -> StatesRead:
        given = {} if row.past is None else {self._past: row.past}
        given |= {"position_ids": places} if self._placed else {}
        states, last, output = observe(self._target.reading, ids, layers, use_cache=True, **given)
        row.past = output[self._past]
        return states, last
