"""What is trained: a draft model with its algorithm, and what they make of a micro-batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepspec.algorithms import Algorithm, LossResult
from deepspec.kernels import Kernel, kernel_of, stream_beside
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.placement import Placement
from deepspec.records.batch import Tokens, each_tensor
from deepspec.records.stream import Samples
from deepspec.start.begin import Log, new_draft
from deepspec.start.fresh import empty_draft
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import MicroBatch, Supervised
from deepspec.target_cache.facts import CacheFacts
from deepspec.train.spec import TrainSpec

PRECISIONS: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""`TrainSpec.precision` -> dtype of the forward and backward pass."""
MEASURE_EVERY = 8
"""Steps of training of which one counts acceptance where the loss does not need it: it takes the target's logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A draft in training."""

    spec: TrainSpec
    config: DraftConfig
    model: BlockDraft | EagleDraft
    algorithm: Algorithm
    device: torch.device
    measured: bool = True
    """Whether acceptance is counted in training; else at looks at held-out samples only, as for a draft of reduced
    vocabulary: it takes the target's whole head, up to half a step more."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the forward and backward pass."""
        return PRECISIONS[self.spec.precision]

    @property
    def kernel(self) -> Kernel:
        """Return what computes the loss on this device: another one rounds otherwise."""
        return kernel_of(self.device)

    def supervise(self, tokens: Tokens, keys: Sequence[int]) -> Any:
        """Return what is supervised in rows of samples; both lie in host memory."""
        return self.algorithm.supervise(self.config, self.spec.objective, tokens, keys)

    def measures(self, step: int) -> bool:
        """Return whether acceptance is counted at a training step though the loss may not need it."""
        return self.measured and step % MEASURE_EVERY == 0

    def loss(self, micro: MicroBatch, denominators: Mapping[str, Tensor], *, measure: bool = True) -> LossResult:
        """Return a micro-batch's part of the global loss.

        Args:
            micro: on the task's device, in its dtype.
            denominators: of the global batch, there, too.
            measure: whether acceptance is wanted where the loss does not need it.
        """
        return self.algorithm.loss(self.model, micro.batch, micro.supervision, denominators, measure=measure)

    def moved(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Yield micro-batches on the task's device, in its dtype: on a card, each crosses while one is computed."""
        if self.device.type == "cuda":
            yield from _crossing(micro_batches, self.device, self.dtype)
            return
        for micro in micro_batches:
            yield micro.to(self.device, self.dtype)


def _crossing(micro_batches: Iterable[MicroBatch], device: torch.device, dtype: torch.dtype) -> Iterator[MicroBatch]:
    """Yield micro-batches on a card; the next one crosses the bus on a stream of its own meanwhile."""
    bus = stream_beside(device, "states to a card")
    work = torch.cuda.current_stream(device)
    waiting: MicroBatch | None = None
    for micro in micro_batches:
        with torch.cuda.stream(bus):
            coming = micro.to(device, dtype)
        if waiting is not None:
            yield waiting
        work.wait_stream(bus)
        waiting = each_tensor(coming, lambda tensor: _lent(tensor, work))
    if waiting is not None:
        yield waiting


def _lent(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Return a tensor that another stream works with: its memory is not given away before that has."""
    tensor.record_stream(stream)
    return tensor


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


def draft_of(
    spec: TrainSpec, facts: CacheFacts, samples: Samples, ranks: Ranks, placement: Placement, log: Log
) -> BlockDraft | EagleDraft:
    """Return the draft of a run that begins on this rank's device, in fp32; the first rank's weights are everyone's.

    The first one alone has them: the optimizer hands them out when it takes the model over. Arguments and errors as in
    `deepspec.start.begin.new_draft`.
    """
    if ranks.first:
        model = new_draft(spec, facts, samples, placement, log).to(ranks.device)
    else:
        model = empty_draft(spec, facts, placement.target_folder(facts.target.digest), samples, ranks.device)
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():  # scalars of layers; what is counted is counted by every rank
            ranks.copy_from_first_(buffer)
    return model
