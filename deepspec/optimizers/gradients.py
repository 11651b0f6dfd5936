"""What a backward pass leaves of each parameter, until the weights step.

Several passes of a step are added up in one flat buffer of fp32. Where a step has one pass and its reader can take
gradients as they came, in the precision of the pass and one tensor each, that buffer is never made: it would be as
large as the masters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn


class Gradients:
    """Gradients of parameters, taken from each as soon as `backward` has made it.

    Args:
        parameters: whose.
        make: returns the flat buffer of sums.
        views: returns the part of a buffer that belongs to each.
        keeps: whether the only gradient of a step stays as it came; else it is copied into the buffer.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: Callable[[], Tensor],
        views: Callable[[Tensor], Mapping[str, Tensor]],
        *,
        keeps: bool = False,
    ) -> None:
        """Listen to the parameters."""
        self._names = list(parameters)
        self._make, self._views, self._keeps = make, views, keeps
        self._flat: Tensor | None = None
        self._parts: Mapping[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._missing = set(self._names)
        """Which had no gradient since the last step: their part of the buffer holds what was there before it."""
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(self._collect, name))
        if not keeps:
            self._buffer()

    @property
    def made(self) -> bool:
        """Return whether the buffer of sums is there."""
        return self._flat is not None

    def kept(self) -> dict[str, Tensor] | None:
        """Return the gradients as they came, by parameter that had one; None where some were added up."""
        return self._kept if len(self._kept) + len(self._missing) == len(self._names) else None

    def sums(self) -> Tensor:
        """Return the flat buffer with every gradient since the last step; 0 where there was none."""
        flat = self._buffer()
        for name in [*self._kept]:
            self._widen(name)
        for name in self._missing:
            self._parts[name].zero_()
        self._missing = set()
        return flat

    def forget(self) -> None:
        """Drop all gradients; nothing is written before there are others."""
        self._kept.clear()
        self._missing = set(self._names)

    def _buffer(self) -> Tensor:
        if self._flat is None:
            self._flat = self._make()
            self._parts = self._views(self._flat)
        return self._flat

    def _collect(self, name: str, parameter: Tensor) -> None:
        """Take a parameter's new gradient."""
        found, parameter.grad = parameter.grad, None
        if found is None:
            return
        first = name in self._missing
        self._missing.discard(name)
        if first and self._keeps:
            self._kept[name] = found
        elif first:
            self._parts[name].copy_(found)
        else:
            self._widen(name)
            self._parts[name].add_(found)

    def _widen(self, name: str) -> None:
        """Move a gradient that was kept into the buffer."""
        if name in self._kept:
            self._buffer()
            self._parts[name].copy_(self._kept.pop(name))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Weights that step together: the same places of every buffer, each contiguous."""

    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    gradient: Tensor | None
    """Of any precision; None: it is 0."""
    working: Tensor | None
    """Where the new weights go in the model's own precision; None: they are the masters, or are sent elsewhere."""


def total_norm(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of gradients of any precision, together, a scalar in fp32."""
    norms = torch._foreach_norm([*gradients.values()], dtype=torch.float32)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
