"""The target's side of decoding: one forward pass over all rows, with a cache, giving states and logits.

Legend: B rows, Q tokens a row is given, A captured layers, D hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepspec.decoding.rows import RowCache
from deepspec.errors import TargetError
from deepspec.target.capture import capture
from deepspec.target.load import Target

_KINDS = frozenset({"full_attention", "sliding_attention"})


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
        self._dtype = target.head_weight.dtype
        self._layers = tuple(layers)
        self._windows = _windows(target)

    def prefill(self, prompts: Sequence[Sequence[int]], cache: RowCache) -> tuple[Tensor, Tensor]:
        """Read the prompts into an empty cache.

        Returns:
            captured states `(B, T, A·D)`, T the longest prompt, and logits `(B, V)` after each prompt's last token.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        states, last = self._forward(ids.to(self.device), cache)
        cache.advance(lengths)
        rows = torch.arange(len(prompts), device=self.device)
        return states, self._logits(last[rows, lengths - 1])

    def step(self, tokens: Tensor, cache: RowCache) -> tuple[Tensor, Tensor]:
        """Read `(B, Q)` tokens behind each row; the caller advances the cache by those that it keeps.

        Returns:
            captured states `(B, Q, A·D)` and logits `(B, Q, V)`.
        """
        states, last = self._forward(tokens, cache)
        return states, self._logits(last)

    @torch.inference_mode()
    def _forward(self, tokens: Tensor, cache: RowCache) -> tuple[Tensor, Tensor]:
        positions = cache.open(tokens.shape[1])
        inputs = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
        return capture(self._reading, tokens, self._layers, attention_mask=self._masks(cache), **inputs)

    def _masks(self, cache: RowCache) -> Any:
        """Return what transformers takes: nothing where its own default is right, a mask, or one per kind of layer."""
        if not self._windows:
            return None if cache.plainly_causal else self._additive(cache, None)
        return {kind: self._additive(cache, window) for kind, window in self._windows.items()}

    def _additive(self, cache: RowCache, window: int | None) -> Tensor:
        dtype = self._dtype
        seen = cache.causal_mask(window)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)

    @torch.inference_mode()
    def _logits(self, last: Tensor) -> Tensor:
        logits: Tensor = self._reading.head(last)
        cap = self._reading.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


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
