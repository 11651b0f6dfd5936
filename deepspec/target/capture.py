"""Hidden states of chosen target layers, from one forward pass that never computes a logit.

Rows are padded on the right only. Attention is causal, so a position never sees what stands to its right: padding
changes no value, and no attention mask is needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepspec.errors import TargetError

EMBEDDING = -1
"""Layer id of the embedding output, as it is fed to layer 0 (scaled where the family scales it)."""


@torch.no_grad()
def capture(decoder: nn.Module, input_ids: Tensor, layers: Sequence[int], **inputs: Any) -> tuple[Tensor, Tensor]:
    """Return the chosen layers' outputs, concatenated in the order given, and the state after the final norm.

    Args:
        decoder: the target without its head; has `layers`.
        input_ids: `(B, T)`, padded on the right.
        layers: ids of decoder layers; -1 is the embedding output.
        inputs: anything else that the decoder takes: a cache with its positions and masks.

    Returns:
        `(B, T, len(layers) * D)` and `(B, T, D)`, in the model's dtype.
    """
    with ExitStack() as hooks:
        outputs = [hooks.enter_context(_recorded(decoder, layer)) for layer in layers]
        last: Tensor = decoder(input_ids=input_ids, **{"use_cache": False, **inputs}).last_hidden_state
    captured = [output[0].to(last.device) for output in outputs]
    return (torch.cat(captured, dim=-1) if captured else last[..., :0]), last


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers captured where nothing else is said: 5, evenly from 1 to L - 4, halves rounded to even.

    Shallow targets give fewer; the last layer is never among them.
    """
    first = min(1, num_layers - 2)
    last = max(first, num_layers - 4)
    return tuple(sorted({round(first + step * (last - first) / 4) for step in range(5)}))


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Check that the layers exist, are in order, and leave out the last one.

    Raises:
        TargetError: they do not.
    """
    wanted = f"wanted ascending ids from -1 (embedding output) to {num_layers - 2}, each once"
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < EMBEDDING or layers[-1] > num_layers - 2:
        raise TargetError(f"cannot capture layers {list(layers)} of a target with {num_layers} layers; {wanted}")


@contextmanager
def _recorded(decoder: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """Record what one layer puts out, or what the first one is fed."""
    output: list[Tensor] = []
    blocks: Any = decoder.layers
    if layer == EMBEDDING:

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            output.append(args[0] if args else kwargs["hidden_states"])

        handle = blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
            output.append(result[0] if isinstance(result, tuple) else result)

        handle = blocks[layer].register_forward_hook(after)
    try:
        yield output
    finally:
        handle.remove()
