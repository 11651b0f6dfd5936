"""Hidden states of chosen target layers, from one forward pass that never computes a logit.

Rows are padded on the right only. Attention is causal, so a position never sees what stands to its right: padding
changes no value, and no attention mask is needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from deepspec.target.layers import EMBEDDING, normed
from deepspec.target.reading import Reading, first_state, given_values, output_values


def capture(reading: Reading, input_ids: Tensor, layers: Sequence[int], **inputs: Any) -> tuple[Tensor, Tensor]:
    """Return the chosen layers' outputs, concatenated in the order given, and the state before the head.

    See `observe`; what else the decoder gives is left out.
    """
    states, last, _ = observe(reading, input_ids, layers, **inputs)
    return states, last


@torch.no_grad()
def observe(reading: Reading, input_ids: Tensor, layers: Sequence[int], **inputs: Any) -> tuple[Tensor, Tensor, Any]:
    """Return the chosen layers' outputs, the state before the head, and all that the decoder gives.

    Args:
        reading: where the target has its blocks.
        input_ids: `(B, T)`, padded on the right.
        layers: ids of decoder layers; -1 is the embedding output, one past the last the state behind the final norm.
        inputs: anything else that the decoder takes: a cache with its positions and masks.

    Returns:
        `(B, T, len(layers) * D)` and `(B, T, D)`, in the model's dtype and on the device of the tokens, wherever the
        layers lie; and the decoder's output. The head's product with the second is the logits before any softcap: where
        the target scales its logits, the state carries the factor.
    """
    final = normed(len(reading.blocks))
    with ExitStack() as hooks:
        outputs = {layer: hooks.enter_context(_recorded(reading, layer)) for layer in layers if layer != final}
        given = reading.decoder(input_ids=input_ids, **{"use_cache": False, **inputs})
    last: Tensor = output_values(given)[0].to(input_ids.device)
    captured = [last if layer == final else outputs[layer][0].to(input_ids.device) for layer in layers]
    if reading.logit_scale != 1.0:
        last = last * reading.logit_scale
    return (torch.cat(captured, dim=-1) if captured else last[..., :0]), last, given


@contextmanager
def _recorded(reading: Reading, layer: int) -> Iterator[list[Tensor]]:
    """Record what one layer puts out, or what the first one is fed in its first run."""
    output: list[Tensor] = []
    runs = count()
    wanted = reading.runs[layer] if reading.runs and layer != EMBEDDING else 0

    def keep(values: Sequence[Any]) -> None:
        state = first_state(values)
        if state is not None and next(runs) == wanted:
            output.append(state)

    if layer == EMBEDDING:

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(given_values(args, kwargs))

        handle = reading.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
            keep(output_values(result))

        handle = reading.blocks[layer].register_forward_hook(after)
    try:
        yield output
    finally:
        handle.remove()
