"""The kernel of what slots read of their block against plain arithmetic, forward and backward.

TRITON_INTERPRET=1 python -m pytest tests/interpreted/own_kernel.py
python -m pytest tests/interpreted/own_kernel.py     # compiled, where there is a GPU
"""

import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.attention import triton_own
from deepspec.attention.split import _own_block, _own_block_on_card

DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="nothing runs a kernel here: there is no GPU, and TRITON_INTERPRET=1 was not asked for",
)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest norm of the error over the norm of what float64 gives from the same rounded inputs."""
DTYPES = [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])]
"""The interpreter has no products of bf16."""
GROUPED = dict(batch=2, heads=4, groups=2, blocks=3, slots=7, size=16)
SHAPES = [
    pytest.param(GROUPED, id="two heads a group"),
    pytest.param(dict(batch=1, heads=8, groups=1, blocks=2, slots=5, size=24), id="heads no power of two wide"),
    pytest.param(dict(batch=1, heads=3, groups=3, blocks=2, slots=16, size=32), id="a head a group, 16 slots"),
    pytest.param(dict(batch=1, heads=2, groups=1, blocks=1, slots=1, size=16), id="one slot"),
]


def drawn(
    shape: dict[str, int], dtype: torch.dtype, *, spare: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return queries (some of them no slots), keys, values and the gradients that come in, as projections lie."""
    generator = torch.Generator().manual_seed(0)
    places = shape["blocks"] * shape["slots"]

    def draw(heads: int, count: int) -> Tensor:
        values = torch.randn(shape["batch"], count, heads, shape["size"], generator=generator)
        return values.to(DEVICE, dtype).transpose(1, 2)

    query, key, value = (
        draw(shape["heads"], places + spare),
        draw(shape["groups"], places),
        draw(shape["groups"], places),
    )
    lse = torch.randn(shape["batch"], shape["heads"], places, generator=generator).to(DEVICE)
    return (query, key, value), (draw(shape["heads"], places), lse)


def found(
    call: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor], mask: object, scale: float
) -> list[Tensor]:
    """Return what was read, the normalisers, and the gradients of the inputs."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    read, lse = call(*inputs, mask, scale)
    total = (read * gradients[0]).sum() + (lse * gradients[1].to(lse.dtype)).sum()
    return [read, lse, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_reads_what_plain_arithmetic_does_and_gives_its_gradients(
    shape: dict[str, int], dtype: torch.dtype, causal: bool
) -> None:
    assert triton_own.own_block is not None
    mask, scale = SimpleNamespace(slots=shape["slots"], causal=causal), 0.3
    inputs, gradients = drawn(shape, dtype)
    exact, gradient = ([each.double() for each in some] for some in (inputs, gradients))
    wanted = found(_own_block, exact, gradient, mask, scale)
    ours = found(_own_block_on_card, inputs, gradients, mask, scale)
    for mine, theirs in zip(ours, wanted, strict=True):
        error = torch.linalg.vector_norm(mine.double() - theirs.double()) / torch.linalg.vector_norm(theirs.double())
        assert error < CLOSE[dtype]


def test_queries_that_are_no_slots_read_nothing_and_have_no_gradient() -> None:
    shape = GROUPED
    mask, places = SimpleNamespace(slots=shape["slots"], causal=False), shape["blocks"] * shape["slots"]
    inputs, gradients = drawn(shape, torch.float32, spare=5)
    padded = found(_own_block_on_card, inputs, gradients, mask, 0.3)
    alone = found(_own_block_on_card, (inputs[0][:, :, :places], *inputs[1:]), gradients, mask, 0.3)
    assert not padded[2][:, :, places:].any()
    padded[2] = padded[2][:, :, :places]
    for mine, theirs in zip(padded, alone, strict=True):
        assert torch.equal(mine, theirs)


def test_compiled_code_takes_it_as_it_is() -> None:
    shape = GROUPED
    mask = SimpleNamespace(slots=shape["slots"], causal=False)
    inputs, gradients = drawn(shape, torch.float32)
    eager = found(_own_block_on_card, inputs, gradients, mask, 0.3)
    around = torch.compile(
        lambda q, k, v, _, scale: torch.ops.deepspec.own_block(q * 1, k * 1, v * 1, shape["slots"], False, scale),
        backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for mine, theirs in zip(found(around, inputs, gradients, mask, 0.3), eager, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator_keeps_what_operators_promise(dtype: torch.dtype) -> None:
    (query, key, value), _ = drawn(GROUPED, dtype)
    arguments = [each.requires_grad_() for each in (query, key, value)]
    torch.library.opcheck(torch.ops.deepspec.own_block.default, (*arguments, 7, False, 0.3))
