"""A draft compiled for a card: what is elementwise between the products becomes a few kernels.

Norms, rotations, gates and residuals are fused, and what the backward pass can make again from a product's inputs is
not kept. Compiling takes a card's host a minute or more, so it pays in runs of many steps only, and looks at held-out
samples do without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from deepspec.attention.attention import KeyValue
from deepspec.attention.flex import allow_compilations, few_shapes
from deepspec.models.draft import BlockDraft, EagleDraft

PAYS_FROM = 4096
"""Samples of a rank from which on a run is compiled: where a minute of compiling is won back (docs/adr/0015)."""


def compile_draft(model: BlockDraft | EagleDraft) -> None:
    """Compile what a model computes in training, for any number of rows and positions.

    Of a block draft each block, all with the same code, and what makes keys and values of its context; of an Eagle3
    draft a whole step.
    """
    allow_compilations()
    if isinstance(model, BlockDraft):
        joined = partial(context_keys_values, model)
        model.context_keys_values = _in_training(joined, model.context_keys_values)  # type: ignore[method-assign]
    parts: list[Any] = [*model.layers] if isinstance(model, BlockDraft) else [model]
    for part in parts:
        part.forward = _in_training(part.forward, part.forward, first=0 if isinstance(model, BlockDraft) else None)


def context_keys_values(model: BlockDraft, context_BTD: Tensor, positions_BT: Tensor) -> list[KeyValue]:
    """Return what the method of a draft does, by one product for all layers instead of two small ones for each."""
    rotation = model.rotary(positions_BT, context_BTD.dtype)
    layers = [layer.self_attn for layer in model.blocks()]
    weights = [[project.weight for project in layer.into_context()] for layer in layers]
    sizes = [len(weight) for each in weights for weight in each]
    joined = linear(context_BTD, torch.cat([weight for each in weights for weight in each]))
    parts = iter(torch.split(joined, sizes, dim=-1))
    return [layer.keyed([next(parts) for _ in each], rotation) for layer, each in zip(layers, weights, strict=True)]


def _in_training(
    forward: Callable[..., Any], plain: Callable[..., Any], first: int | None = None
) -> Callable[..., Any]:
    """Return a function that is compiled where gradients are wanted.

    Args:
        forward: what is compiled.
        plain: the function elsewhere.
        first: which argument takes part in the backward pass though nothing before it is trained, so that the first
            block is compiled as all others are; None: none.
    """
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=True)

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        if first is not None and isinstance(inputs[first], Tensor) and not inputs[first].requires_grad:
            inputs = (*inputs[:first], inputs[first].detach().requires_grad_(), *inputs[first + 1 :])
        with few_shapes("the draft"):
            return compiled(*inputs)

    return run
