"""What is trained: a draft model with its algorithm, and what they make of a micro-batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepspec.algorithms import Algorithm, LossResult
from deepspec.models import BlockDraft, DraftConfig, EagleDraft
from deepspec.train.data import MicroBatch
from deepspec.train.spec import TrainSpec

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""`TrainSpec.precision` -> dtype of the forward and backward pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised:
    """A micro-batch with what is supervised in it."""

    micro: MicroBatch
    supervision: Any

    @property
    def denominators(self) -> dict[str, Tensor]:
        """Return what sums up over micro-batches and ranks to the denominators of the losses."""
        found: dict[str, Tensor] = self.supervision.denominators
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A draft in training."""

    spec: TrainSpec
    config: DraftConfig
    model: BlockDraft | EagleDraft
    algorithm: Algorithm
    device: torch.device
    measured: bool = True
    """Whether acceptance is counted at every step; else at looks at held-out samples only, as for a draft of reduced
    vocabulary: it takes the target's whole head, up to half a step more."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the forward and backward pass."""
        return DTYPES[self.spec.precision]

    def supervise(self, micro: MicroBatch) -> Supervised:
        """Choose what is supervised; tokens move to the device, states stay where they are."""
        batch = micro.batch.tokens_to(self.device)
        supervision = self.algorithm.supervise(self.config, self.spec.objective, batch, micro.keys)
        return Supervised(micro=MicroBatch(batch=batch, keys=micro.keys), supervision=supervision)

    def loss(self, supervised: Supervised, denominators: Mapping[str, Tensor], *, look: bool = False) -> LossResult:
        """Return the micro-batch's part of the global loss.

        Args:
            supervised: the micro-batch.
            denominators: summed over the global batch.
            look: whether this is a look at held-out samples.
        """
        batch = supervised.micro.batch.to(self.device, self.dtype)
        given = self.model, batch, supervised.supervision, denominators
        return self.algorithm.loss(*given) if look or self.measured else self.algorithm.loss(*given, measure=False)


def total_denominators(parts: Iterable[Supervised]) -> dict[str, Tensor]:
    """Return the denominators of several micro-batches, summed in double precision."""
    totals: dict[str, Tensor] = {}
    for part in parts:
        add(totals, part.denominators)
    return {name: total.float() for name, total in totals.items()}


def add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add values to running totals, in place, in double precision."""
    for name, value in values.items():
        value = value.detach().double()
        totals[name] = totals[name] + value if name in totals else value
