"""A target's norms, rotations and projections in fewer kernels, and its attention without copies of keys and values.

transformers computes a norm in seven kernels, rotates queries and keys in ten, and repeats keys and values where there
is a mask. In a recorded pass over a few tokens a kernel takes its time whatever it computes. What takes the place of
a model's own is tried on it first; where it gives something else, the model's own stays.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from deepspec.attention.attention import attend_grouped
from deepspec.kv.joined import Joined, joined
from deepspec.target.proof import allowed, distance

GROUPED = "deepspec_grouped"
"""What transformers calls our attention."""
ROTATES = "apply_rotary_pos_emb"
"""What transformers calls the rotation of queries and keys, in the file of each model."""
_EPSILONS = ("variance_epsilon", "eps")
_Norm = Callable[[Tensor], Tensor]


class Fused:
    """Lets a target's modules compute in fewer kernels for a while.

    Args:
        decoder: the target's.
    """

    def __init__(self, decoder: nn.Module) -> None:
        """Find norms that one kernel computes as they do, by trying one of each kind."""
        kinds: dict[type[nn.Module], Callable[..., _Norm] | None] = {}
        self._norms: list[tuple[nn.Module, _Norm]] = []
        for module in decoder.modules():
            epsilon = _epsilon(module)
            if epsilon is None:
                continue
            if type(module) not in kinds:
                kinds[type(module)] = next((norm for norm in (_plain, _offset) if _same(module, norm, epsilon)), None)
            norm = kinds[type(module)]
            if norm is not None:
                self._norms.append((module, norm(module.weight, epsilon)))
        self._turns = {file: _Rotation(file) for file in _files(decoder)}
        self._config: Any = getattr(decoder, "config", None)
        self._grouped = getattr(self._config, "_attn_implementation", None) == "sdpa"
        self._decoder, self._joined = decoder, list[Joined]()
        ALL_ATTENTION_FUNCTIONS.register(GROUPED, _attention)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so inside; the weights of projections that are joined are laid side by side the first time."""
        self._joined = self._joined or joined(self._decoder)
        changed = [*self._norms, *(pair for each in self._joined for pair in each.forwards())]
        for module, forward in changed:
            module.forward = forward
        for file, rotation in self._turns.items():
            setattr(file, ROTATES, rotation)
        if self._grouped:
            self._config._attn_implementation = GROUPED
        try:
            yield
        finally:
            if self._grouped:
                self._config._attn_implementation = "sdpa"
            for file, rotation in self._turns.items():
                setattr(file, ROTATES, rotation.original)
                rotation.forget()
            for module, _ in changed:
                del module.forward
            for each in self._joined:
                each.forget()


class _Rotation:
    """Queries and keys rotated together: x·cos + swapped(x)·(−sin, sin)."""

    def __init__(self, file: ModuleType) -> None:
        """Keep what it takes the place of."""
        self.original: Callable[..., tuple[Tensor, Tensor]] = getattr(file, ROTATES)
        self._sines: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **told: Any
    ) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys."""
        if more or told or cos.dim() != 3 or cos.shape[-1] != q.shape[-1]:
            return self.original(q, k, cos, sin, *more, **told)
        both = torch.cat((q, k), dim=1)
        swapped = both.roll(q.shape[-1] // 2, -1)
        turned = torch.addcmul(both * cos[:, None], swapped, self._signed(sin))
        return turned[:, : q.shape[1]], turned[:, q.shape[1] :]

    def forget(self) -> None:
        """Forget the sines of a pass."""
        self._sines.clear()

    def _signed(self, sin: Tensor) -> Tensor:
        """Return sines whose first half is negative: the same for all layers of a pass."""
        if id(sin) not in self._sines:
            first, second = sin.chunk(2, dim=-1)
            self._sines[id(sin)] = sin, torch.cat((-first, second), dim=-1)[:, None]
        return self._sines[id(sin)][1]


def _files(decoder: nn.Module) -> list[ModuleType]:
    """Return the files of a decoder's classes that rotate as is usual, by trying them."""
    found = {name: sys.modules[name] for name in {type(module).__module__ for module in decoder.modules()}}
    return [file for _, file in sorted(found.items()) if hasattr(file, ROTATES) and _turns(file)]


@torch.inference_mode()
def _turns(file: ModuleType) -> bool:
    q, k = (torch.linspace(-2, 3, 2 * heads * 3 * 8).view(2, heads, 3, 8) for heads in (4, 2))
    cos, sin = (torch.linspace(low, 1, 2 * 3 * 8).view(2, 3, 8) for low in (-1, 0))
    rotation = _Rotation(file)
    try:
        wanted = rotation.original(q, k, cos, sin)
    except (IndexError, RuntimeError, TypeError, ValueError):  # it takes something else
        return False
    pairs = zip(rotation(q, k, cos, sin), wanted, strict=True)
    return all(distance(one, other) <= allowed(torch.float32) for one, other in pairs)


def _plain(weight: Any, epsilon: float) -> _Norm:
    """Return the norm whose weight is a factor."""
    return lambda x: rms_norm(x, weight.shape, weight, epsilon)


def _offset(weight: Any, epsilon: float) -> _Norm:
    """Return the norm whose weight is added to 1, in fp32."""
    factor = 1.0 + weight.float()
    return lambda x: rms_norm(x.float(), weight.shape, factor, epsilon).to(x.dtype)


def _epsilon(module: nn.Module) -> float | None:
    """Return what a norm of one weight adds to the mean square; None where it is no such norm."""
    own: Mapping[str, Any] = vars(module)
    plain = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    found = next((own[name] for name in _EPSILONS if name in own), None)
    plain = plain and list(module._parameters) == ["weight"] and "forward" not in own
    return float(found) if plain and found is not None else None


@torch.inference_mode()
def _same(module: nn.Module, norm: Callable[..., _Norm], epsilon: float) -> bool:
    """Return whether a norm gives what the one kernel gives."""
    weight: Any = module.weight
    x = torch.linspace(-3, 5, 4 * len(weight), device=weight.device).view(1, 4, -1).to(weight.dtype)
    return distance(norm(weight, epsilon)(x), module(x)) <= allowed(weight.dtype)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    if attention_mask is None or told.get("position_bias") is not None:
        read, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **told)
        return read, None
    read = attend_grouped(query, key, value, attention_mask, told.get("scaling"))
    return read.transpose(1, 2).contiguous(), None
