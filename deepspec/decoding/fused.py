"""A target's norms as one kernel each, and its attention without a copy of keys and values for every query head.

transformers computes a norm in seven kernels, and repeats keys and values where there is a mask. In a recorded pass
over a few tokens, each kernel costs one to two microseconds whatever it computes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deepspec.models.attention import attend_grouped
from deepspec.target.proof import allowed, distance

GROUPED = "deepspec_grouped"
"""What transformers calls our attention."""
_EPSILONS = ("variance_epsilon", "eps")


class Fused:
    """Lets a target's modules compute in fewer kernels for a while.

    Args:
        decoder: the target's.
    """

    def __init__(self, decoder: nn.Module) -> None:
        """Find norms that one kernel computes as they do, by trying one of each kind."""
        kinds: dict[type[nn.Module], bool] = {}
        self._norms: list[tuple[nn.Module, float]] = []
        for module in decoder.modules():
            epsilon = _epsilon(module)
            if epsilon is not None and kinds.setdefault(type(module), _same(module, epsilon)):
                self._norms.append((module, epsilon))
        self._config: Any = getattr(decoder, "config", None)
        self._grouped = getattr(self._config, "_attn_implementation", None) == "sdpa"
        ALL_ATTENTION_FUNCTIONS.register(GROUPED, _attention)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so inside."""
        for module, epsilon in self._norms:
            module.forward = partial(_norm, module.weight, epsilon)
        if self._grouped:
            self._config._attn_implementation = GROUPED
        try:
            yield
        finally:
            if self._grouped:
                self._config._attn_implementation = "sdpa"
            for module, _ in self._norms:
                del module.forward


def _norm(weight: Any, epsilon: float, x: Tensor) -> Tensor:
    return rms_norm(x, weight.shape, weight, epsilon)


def _epsilon(module: nn.Module) -> float | None:
    """Return what a norm of one weight adds to the mean square; None where it is no such norm."""
    own: Mapping[str, Any] = vars(module)
    plain = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    found = next((own[name] for name in _EPSILONS if name in own), None)
    plain = plain and list(module._parameters) == ["weight"] and "forward" not in own
    return float(found) if plain and found is not None else None


@torch.inference_mode()
def _same(module: nn.Module, epsilon: float) -> bool:
    """Return whether a norm gives what the one kernel gives."""
    weight: Any = module.weight
    x = torch.linspace(-3, 5, 4 * len(weight), device=weight.device).view(1, 4, -1).to(weight.dtype)
    found = _norm(weight, epsilon, x)
    return distance(found, module(x)) <= allowed(weight.dtype)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    if attention_mask is None or told.get("position_bias") is not None:
        read, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **told)
        return read, None
    read = attend_grouped(query, key, value, attention_mask, told.get("scaling"))
    return read.transpose(1, 2).contiguous(), None
