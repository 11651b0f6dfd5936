"""A draft compiled for a card: what is elementwise between the products becomes a few kernels.

Norms, rotations, gates and residuals are fused, and what the backward pass can make again from a product's inputs is
not kept. Compiling takes a card's host a minute or more, so it pays in runs of many steps only, and looks at held-out
samples do without.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from deepspec.attention.attention import Context, KeyValue, Mask, Rotation
from deepspec.attention.flex import allow_compilations, few_shapes
from deepspec.attention.split import in_tiles
from deepspec.models.block import Block
from deepspec.models.draft import BlockDraft, EagleDraft

PAYS_FROM = 4096
"""Samples of a rank from which on a run is compiled: where a minute of compiling is won back (docs/adr/0015)."""


def compile_draft(model: BlockDraft | EagleDraft) -> None:
    """Compile what a model computes in training, for any number of rows and positions.

    Of a block draft each block, all with the same code, and what makes keys and values of its context; of an Eagle3
    draft a whole step. The model lies where it is trained.
    """
    allow_compilations()
    model.rotary.bring_to(model.fc.weight.device)
    if not isinstance(model, BlockDraft):
        model.forward = _in_training(EagleDraft.forward, model, model.forward)  # type: ignore[method-assign]
        return
    given = model.context_keys_values
    model.context_keys_values = _in_training(context_keys_values, model, given)  # type: ignore[method-assign]
    for block in model.blocks():
        function = _block_of_slots if type(block) is Block else type(block).forward
        block.forward = _in_training(function, block, block.forward, first=0)  # type: ignore[method-assign]


def context_keys_values(model: BlockDraft, context_BTD: Tensor, positions_BT: Tensor) -> list[KeyValue]:
    """Return what the method of a draft does, by one product for all layers instead of two small ones for each.

    Zeros follow, up to the tiles of positions that attention reads, which then copies nothing to fill them.
    """
    rotation = model.rotary(in_tiles(positions_BT[..., None])[..., 0], context_BTD.dtype)
    layers = [layer.self_attn for layer in model.blocks()]
    parts = iter(_projected(in_tiles(context_BTD), [project for layer in layers for project in layer.into_context()]))
    return [layer.keyed([next(parts) for _ in layer.into_context()], rotation) for layer in layers]


def _block_of_slots(block: Block, x_BQD: Tensor, rotation: Rotation, context: Context, mask: Mask) -> Tensor:
    """Return what a block's `forward` does, by one product for queries, keys and values."""
    attention, normed = block.self_attn, block.input_layernorm(x_BQD)
    raw, *projected = _projected(normed, [attention.q_proj, *attention.into_context()])
    seen = context.append(attention.keyed(projected, rotation))
    return block.finish(x_BQD, attention.read(*attention.queried(raw, rotation), seen, mask))


def _projected(x: Tensor, projects: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return what several layers without a bias make of one input."""
    weights = [project.weight for project in projects]
    return torch.split(linear(x, torch.cat(weights)), [len(weight) for weight in weights], dim=-1)


def _in_training(
    function: Callable[..., Any], part: nn.Module, plain: Callable[..., Any], first: int | None = None
) -> Callable[..., Any]:
    """Return what computes a part of a model: compiled where gradients are wanted, the same code for equal parts.

    Args:
        function: of the part and its inputs, which is compiled.
        part: of the model.
        plain: what computes it elsewhere.
        first: which input takes part in the backward pass though nothing before it is trained, so that the first
            block is compiled as all others are; None: none.
    """
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        if first is not None and isinstance(inputs[first], Tensor) and not inputs[first].requires_grad:
            inputs = (*inputs[:first], inputs[first].detach().requires_grad_(), *inputs[first + 1 :])
        with few_shapes("the draft"):
            return compiled(part, *inputs)

    return run
