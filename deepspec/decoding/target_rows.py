"""The target's side of decoding: one forward pass over all rows, with a memory, giving states and logits.

Legend: B rows, Q tokens a row is given, A captured layers, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from deepspec.decoding.fitting import USUAL, fitting_rows
from deepspec.kv.fixed import FixedCache
from deepspec.kv.memory import ReadingWay
from deepspec.kv.readers import reader_for
from deepspec.proposers.propose import Proposer
from deepspec.target.load import Target

Passes = Literal["growing", "fixed", "recorded"]
"""How the passes of rounds are started: kernel by kernel over memories that grow, or that are of fixed shapes, which is
what a recorded one replays. Outside of tests fixed shapes serve for being recorded."""


def silent(_: str) -> None:
    """Say nothing."""


class TargetRows:
    """A target that decodes many rows, each at its own length.

    Args:
        target: in eval mode.
        layers: ids of the layers whose states are captured; may be empty.
        say: told where a card is used at less than its speed.
        fused: whether passes of fixed shapes take fewer kernels, which round otherwise (fused.py).

    Raises:
        TargetError: it has layers that keep something else than keys and values.
    """

    def __init__(
        self, target: Target, layers: Sequence[int], say: Callable[[str], None] = silent, *, fused: bool = True
    ) -> None:
        """Look up what the forward pass needs."""
        self.say = say
        self.device = target.device
        self.hidden_size = target.hidden_size
        self._target, self._reading = target, target.reading
        self._reader = reader_for(target, tuple(layers), fused=fused)

    @property
    def way(self) -> ReadingWay:
        """Return how it reads behind what it remembers (readers.py)."""
        return self._reader.way

    @property
    def passes(self) -> Passes:
        """Return how the passes of rounds are best started."""
        if self.device.type != "cuda":
            return "growing"
        why = self._unrecorded()
        if why is None:
            return "recorded"
        self.say(f"decoding starts every kernel by itself: {why}")
        return "growing"

    def _unrecorded(self) -> str | None:
        """Return why passes cannot be recorded; None where they can."""
        if self.way != "rows":
            return "the target keeps a memory of its own, which cannot give tokens back in a recorded pass"
        if len(self._target.devices) > 1:
            return "the target lies on several devices"
        return None

    def fitting(self, proposer: Proposer, positions: int, prompt: int) -> int:
        """Return how many rows of some positions memory holds, so many of which are their prompt."""
        return USUAL if self.way != "rows" else fitting_rows(self._target, proposer, positions, prompt)

    def memory(self, rows: int, capacity: int) -> Any:
        """Return what is remembered of rows that have read nothing.

        Args:
            rows: number of sequences B.
            capacity: positions that the longest row may ever take.
        """
        return self._reader.memory(rows, capacity)

    def fixed(self, rows: int, capacity: int) -> FixedCache:
        """Return memory of fixed shapes, whose passes can be recorded and replayed, for a target that reads by rows."""
        return FixedCache(rows, capacity, self.device)

    def prefill(self, prompts: Sequence[Sequence[int]], memory: Any) -> tuple[Tensor, Tensor]:
        """Read the prompts into an empty memory.

        Returns:
            captured states `(B, T, A·D)`, T the longest prompt, and logits `(B, V)` after each prompt's last token.
        """
        states, last = self._reader.prompts(prompts, memory)
        ends = torch.tensor([len(prompt) for prompt in prompts], device=self.device) - 1
        return states, self._logits(last[torch.arange(len(prompts), device=self.device), ends])

    def step(self, tokens: Tensor, memory: Any) -> tuple[Tensor, Tensor]:
        """Read `(B, Q)` tokens behind each row; the caller advances the memory by those that it keeps.

        Returns:
            captured states `(B, Q, A·D)` and logits `(B, Q, V)`.
        """
        states, last = self._reader.behind(tokens, memory)
        return states, self._logits(last)

    @torch.inference_mode()
    def _logits(self, last: Tensor) -> Tensor:
        logits: Tensor = self._reading.head(last).to(last.device)
        cap = self._reading.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
