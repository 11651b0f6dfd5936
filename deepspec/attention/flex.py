"""flex_attention, compiled once and for all shapes: only the compiled kernel skips what is not seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from deepspec.errors import TrainingError

SMALLEST_HEAD = 16
"""Heads below this size are refused by flex_attention's kernels."""

COMPILATIONS = 32
"""Kinds of shapes for which a function may be compiled: with and without gradients, one row or several, few more."""


def check_heads(size: int) -> None:
    """Check that a card's attention takes heads of a size.

    Raises:
        TrainingError: it does not.
    """
    if size < SMALLEST_HEAD:
        raise TrainingError(
            f"the draft has heads of {size}, as its target has, and attention on a card takes none below "
            f"{SMALLEST_HEAD}: train it with --device cpu"
        )


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention under a block mask with the logarithm of its normaliser, differentiable in both.

    Args:
        query: `(B, H, Q, d)`.
        key: `(B, G, C, d)`.
        value: of the same shape.
        mask: what is seen.
        scale: factor on query·key.

    Raises:
        TrainingError: it was compiled for too many kinds of shapes; going on would compute every pair of positions.
    """
    told: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if torch.compiler.is_compiling():  # as part of what is around it
        read, beside = flex_attention(query, key, value, return_aux=AuxRequest(lse=True), **told)
        return read, beside.lse
    with few_shapes("flex_attention", f", queries {tuple(query.shape)} over {key.shape[2]} positions"):
        read, beside = _compiled()(query, key, value, return_aux=AuxRequest(lse=True), **told)
    return read, beside.lse


@cache
def _compiled() -> Callable[..., Any]:
    allow_compilations()
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


def allow_compilations() -> None:
    """Let functions be compiled for so many kinds of shapes; one more is an error, never a silent, dense fall-back.

    Numbers of a model, an epsilon or a scale, are constants of its code: dynamo would take them for inputs, find out
    when all is traced that they are none, and trace all of it a second time.
    """
    config: Any = torch._dynamo.config
    config.specialize_float = True
    config.recompile_limit = max(config.recompile_limit, COMPILATIONS)
    config.fail_on_recompile_limit_hit = True


@contextmanager
def few_shapes(what: str, asked: str = "") -> Iterator[None]:
    """Raise what dynamo says of too many kinds of shapes as our own.

    Raises:
        TrainingError: it was compiled for too many; going on would compute every pair of positions.
    """
    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise TrainingError(
            f"{what} was compiled for {COMPILATIONS} kinds of shapes and met another{asked}: {error}; shapes should "
            "be few, please report it"
        ) from error
