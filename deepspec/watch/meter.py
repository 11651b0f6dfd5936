"""Where the time of a run goes, how much work it does in it, and what it holds in memory."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.algorithms.base import PassWork
from deepspec.formats.recipe import TRAITS
from deepspec.models.draft import BlockDraft, EagleDraft

PEAK_FLOPS: Mapping[str, float] = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
}
"""Part of a CUDA device's name -> its dense bf16 peak, as the vendor gives it; the first that fits counts."""


@dataclass(slots=True)
class Meter:
    """What this run did since it was started or resumed."""

    peak: float | None = None
    """Operations per second that this rank's device can do; None where it is not known."""
    training: float = 0.0
    """Seconds in steps."""
    processor: float = 0.0
    """Processor seconds of this rank in steps, of all its threads."""
    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Tokens trained on by all ranks."""
    samples: int = 0
    flops: float = 0.0
    """Operations of this rank's products."""

    @property
    def tokens_per_second(self) -> float:
        """Return the throughput of all ranks together."""
        return self.tokens / self.training if self.training else 0.0

    @property
    def samples_per_second(self) -> float:
        """Return the samples of all ranks together, per second."""
        return self.samples / self.training if self.training else 0.0

    @property
    def step_cpu_seconds(self) -> float | None:
        """Return the processor seconds of a step; None where there was none."""
        return self.processor / self.steps if self.steps else None

    @property
    def utilization(self) -> float | None:
        """Return the share of the device's peak that products take (MFU); None where the peak is not known."""
        return self.flops / self.training / self.peak if self.peak and self.training else None


def device_peak(device: torch.device) -> float | None:
    """Return the dense bf16 peak of a device; None where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops(name: str) -> float | None:
    """Return the dense bf16 peak of a CUDA device by its name, or None."""
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name.replace("-", " ").split()), None)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: on its CUDA device, else in the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def step_flops(model: BlockDraft | EagleDraft, work: PassWork, *, held: bool = True) -> float:
    """Return the operations of the products of a forward and backward pass, those of attention among them.

    Each product is taken three times where a matrix is trained, twice where it is the frozen head; attention's two
    products of every pair that sees each other three times. What is computed again for want of memory does not
    count, nor do a refiner's passes over its own guesses.

    Args:
        model: the draft.
        work: of the pass.
        held: whether the target's logits were computed, too.
    """
    eagle, shape = isinstance(model, EagleDraft), model.config.block
    applied = {
        "context": work.context, "both": work.context + work.slots, "slots": work.slots, "rows": work.rows,
    }  # fmt: skip
    kind = {"eagle": eagle, "shipped": TRAITS[model.config.algorithm].shipped}
    trained = sum(parameter.numel() * applied[_where(name, **kind)] for name, parameter in _matrices(model))
    attention = 2 * work.pairs * shape.num_heads * shape.head_dim * len(model.layers)
    return 2.0 * (3 * (trained + attention) + model.lm_head.weight.numel() * (2 * work.rows + held * work.targets))


TABLES = ("embed_tokens", "markov_w1", "codebook", "token_embed")
"""Matrices of which rows are looked up."""


def _matrices(model: BlockDraft | EagleDraft) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.trainable() if p.dim() == 2 and not any(table in name for table in TABLES)]


def _where(name: str, *, eagle: bool, shipped: bool) -> str:
    """Return which positions a matrix is applied to."""
    if name.startswith("fc."):
        return "slots" if shipped else "context"
    if any(part in name for part in ("markov", "confidence", "selector", "readout")):
        return "rows"
    return "both" if not eagle and (".k_proj" in name or ".v_proj" in name) else "slots"
