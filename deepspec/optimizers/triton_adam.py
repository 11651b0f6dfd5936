"""A step of AdamW in one pass over all that it reads and writes, in Triton: on CUDA.

Clipping, decay, moments, master and the narrow copy that the model computes with are one kernel. torch's own fused step
is fed by two passes over the gradients and followed by one over the weights. Loshchilov and Hutter, arXiv 1711.05101:

    m = β₁m + (1 − β₁)g     v = β₂v + (1 − β₂)g²     w = (1 − ηλ)w − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
"""

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.optimizers.gradients import Stretch
from deepspec.optimizers.optimization import Optimization

TILE = 2048
OPTIONS = {"num_warps": 8}
"""8 weights a thread."""


def step_stretches(
    stretches: Iterable[Stretch], spec: Optimization, rate: float, told: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Step weights.

    Args:
        stretches: which.
        spec: betas, ε and decay.
        rate: of this step.
        told: on the device: what gradients are multiplied by; 1, or 0 where nothing may move; and the number of steps
            with this one.
    """
    clip, moves, count = (each.double() for each in told)
    first, second = spec.betas
    numbers = torch.stack([moves, clip, rate / (1 - first**count), (1 - second**count).rsqrt()]).float()
    with torch.cuda.device_of(numbers):  # Triton launches on the current one
        for each in stretches:
            size = each.master.numel()
            given, narrow = each.gradient is not None, each.working is not None
            step_weights[(triton.cdiv(size, TILE),)](
                each.master, each.exp_avg, each.exp_avg_sq,
                each.gradient.contiguous() if each.gradient is not None else each.master,
                each.working if each.working is not None else each.master, numbers, size,
                first, 1 - first, second, 1 - second, 1 - rate * spec.weight_decay, spec.epsilon,
                GIVEN=given, NARROW=narrow, TILE=TILE, **OPTIONS,
            )  # fmt: skip


@triton.jit
def step_weights(
    master: tl.tensor, exp_avg: tl.tensor, exp_avg_sq: tl.tensor, gradient: tl.tensor, working: tl.tensor,
    numbers: tl.tensor, size: tl.tensor, beta: tl.tensor, beside: tl.tensor, beta_sq: tl.tensor, beside_sq: tl.tensor,
    decay: tl.tensor, epsilon: tl.tensor, GIVEN: tl.constexpr, NARROW: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Step a tile of weights; with nothing to move, nothing is read or written."""
    if tl.load(numbers) > 0:
        at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        inside = at < size
        m = beta * tl.load(exp_avg + at, mask=inside, other=0.0)
        v = beta_sq * tl.load(exp_avg_sq + at, mask=inside, other=0.0)
        if GIVEN:
            g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * tl.load(numbers + 1)
            m += beside * g
            v += beside_sq * g * g
        w = decay * tl.load(master + at, mask=inside, other=0.0)
        w -= tl.load(numbers + 2) * m / (tl.sqrt(v) * tl.load(numbers + 3) + epsilon)
        tl.store(exp_avg + at, m, mask=inside)
        tl.store(exp_avg_sq + at, v, mask=inside)
        tl.store(master + at, w, mask=inside)
        if NARROW:
            tl.store(working + at, w.to(working.dtype.element_ty), mask=inside)
