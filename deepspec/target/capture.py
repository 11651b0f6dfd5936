"""Hidden states of chosen target layers, from one forward pass that never computes a logit.

Rows are padded on the right only. Attention is causal, so a position never sees what stands to its right: padding
changes no value, and no attention mask is needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepspec.target.layers import EMBEDDING


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
