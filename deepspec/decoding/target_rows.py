"""The target's side of decoding: one forward pass over all rows, with a memory, giving states and logits.

Legend: B rows, Q tokens a row is given, A captured layers, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepspec.decoding.readers import Way, reader_for
from deepspec.target.load import Target


class TargetRows:
    """A target that decodes many rows, each at its own length.

    Args:
        target: in eval mode.
        layers: ids of the layers whose states are captured; may be empty.

    Raises:
        TargetError: it has layers that keep something else than keys and values.
    """

    def __init__(self, target: Target, layers: Sequence[int]) -> None:
        """Look up what the forward pass needs."""
        self.device = target.device
        self.hidden_size = target.hidden_size
        self._reading = target.reading
        self._reader = reader_for(target, tuple(layers))

    @property
    def way(self) -> Way:
        """Return how it reads behind what it remembers (readers.py)."""
        return self._reader.way

    def memory(self, rows: int, capacity: int) -> Any:
        """Return what is remembered of rows that have read nothing.

        Args:
            rows: number of sequences B.
            capacity: positions that the longest row may ever take.
        """
        return self._reader.memory(rows, capacity)

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
        logits: Tensor = self._reading.head(last)
        cap = self._reading.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
