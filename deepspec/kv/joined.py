"""Projections of one input as one product: query, key and value; gate and up.

A product with few tokens waits for its weights to be read, and a small one does not read at a card's full speed. The
weights of a group are laid side by side once, and each layer's own becomes its part of them: nothing is held twice,
however many decoders a target has.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input, by the names that transformers gives them, in the order in which they are called."""


class Joined:
    """Plain linear layers over one input.

    Args:
        layers: of one dtype and device, all with a bias or none.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """Lay their weights side by side."""
        self._layers, self._sizes = layers, [layer.out_features for layer in layers]
        self._weight = _side_by_side([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self._bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        for layer, part in zip(layers, torch.split(self._weight, self._sizes), strict=True):
            layer.weight.data = part
        self._input: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def forwards(self) -> Iterator[tuple[nn.Linear, Callable[[Tensor], Tensor]]]:
        """Yield each layer with what it computes instead: the first one for all, the others what it has left them."""
        for place, layer in enumerate(self._layers):
            yield layer, self._first if place == 0 else self._later(place)

    def forget(self) -> None:
        """Forget the tensors of a pass."""
        self._input, self._parts = None, ()

    def _first(self, x: Tensor) -> Tensor:
        self._input = x
        self._parts = torch.split(linear(x, self._weight, self._bias), self._sizes, dim=-1)
        return self._parts[0]

    def _later(self, place: int) -> Callable[[Tensor], Tensor]:
        layer = self._layers[place]

        def forward(x: Tensor) -> Tensor:
            return self._parts[place] if x is self._input else linear(x, layer.weight, layer.bias)

        return forward


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return matrices as one, without a copy where another decoder of the target has laid them so already."""
    first, end = parts[0], parts[0].storage_offset()
    for part in parts:
        beside = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (beside and part.is_contiguous() and part.storage_offset() == end):
            return torch.cat(list(parts))
        end += part.numel()
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def joined(decoder: nn.Module) -> list[Joined]:
    """Return what can be joined in a decoder."""
    found = ([vars(module)["_modules"].get(name) for name in names] for module in decoder.modules() for names in GROUPS)
    return [Joined(layers) for layers in found if _alike(layers)]


def _alike(layers: Sequence[nn.Module | None]) -> bool:
    """Return whether layers are plain, of one input, and nothing has taken the place of what they compute."""
    plain = [layer for layer in layers if type(layer) is nn.Linear and "forward" not in vars(layer)]
    kinds = {(each.in_features, each.weight.dtype, each.weight.device, each.bias is None) for each in plain}
    return len(plain) == len(layers) and len(kinds) == 1 and not any(each._forward_hooks for each in plain)
