"""The held-out slice: loss and acceptance of the draft as it is, and the accepted length that decoding would have.

Where answers are sampled, greedy ones to some of the held-out prompts may lie beside them: over these a look walks and
does nothing else, so that the accepted length at temperature 0 is of whole answers.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.records.batch import on_device
from deepspec.records.stream import Draw, Samples, Share, key_of
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import MicroBatch, Pace, Reader
from deepspec.steps.stop import StopSignal
from deepspec.train.accepted import AcceptedLength, AnswersKnown
from deepspec.train.task import Task, add, total_denominators

EPOCH = -1
"""Epoch in the keys of held-out samples: the same anchors at every look, and none that training draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Samples that training does not see, and what is known of their answers."""

    samples: Samples
    answered: AnswersKnown
    most: int
    """Of them that are looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Looking:
    """How samples are gone through."""

    ranks: Ranks
    """Who shares the work."""
    micro_batch: int
    """Samples per forward pass."""
    pace: Pace
    """How far and how wide to read ahead."""


class Validation:
    """Looks at the same held-out samples, in the same way, as often as asked.

    Args:
        task: what is trained.
        held_out: as the training samples are.
        looking: how they are gone through.
        greedy: with greedy answers, where those are sampled; None: there are none.
    """

    def __init__(self, task: Task, held_out: HeldOut, looking: Looking, greedy: HeldOut | None = None) -> None:
        """Choose the samples and sum the denominators, which depend on no weight."""
        walks = bool(task.spec.walked_tokens)
        self._task, self._ranks = task, looking.ranks
        self._own = _Slice(task, held_out, looking)
        self._denominators = self._own.denominators()
        self._accepted = AcceptedLength(task, self._own.ids, held_out.answered) if walks else None
        self._known = held_out.answered.sampled is not None
        self._greedy: tuple[_Slice, AcceptedLength] | None = None
        if greedy is not None and walks:
            beside = _Slice(task, greedy, looking)
            self._greedy = beside, AcceptedLength(task, beside.ids, greedy.answered)
        self.seconds = 0.0
        """That all looks of this process have taken."""
        self.looks = 0
        """Looks of this process: those before a resumed run's beginning are not among them."""

    @property
    def walking(self) -> float:
        """Return the seconds that all looks of this process have taken for the accepted length."""
        counted = [self._accepted, None if self._greedy is None else self._greedy[1]]
        return sum((each.seconds for each in counted if each is not None), 0.0)

    @torch.no_grad()
    def look(self, stop: StopSignal) -> dict[str, float] | None:
        """Return `loss`, the algorithm's metrics and those of `AcceptedLength`, the same on every rank; None where one
        was asked to stop.
        """
        begin = time.perf_counter()
        totals: dict[str, Tensor] = {}
        rounds: dict[str, Tensor] = {}

        def count(micro: MicroBatch) -> None:
            result = self._task.loss(micro, self._denominators)
            add(totals, {"loss": result.loss, **result.sums})
            if self._accepted is not None:
                add(rounds, self._accepted.sums(micro.batch))

        self._own.each(count, stop)
        more = {} if self._greedy is None else self._walked(*self._greedy, stop)
        if self._ranks.any(stop.asked):
            return None
        sums = self._own.summed(totals)
        found = {"loss": float(sums.pop("loss")), **self._task.algorithm.metrics(sums)}
        if self._accepted is not None:
            found |= self._accepted.metrics(_on_host(self._own.summed(rounds)))
        if self._greedy is not None:
            beside, accepted = self._greedy
            told = _on_host(beside.summed(more))
            found |= accepted.of_greedy(told) | ({} if self._known else accepted.metrics(told))
        self.seconds += time.perf_counter() - begin
        self.looks += 1
        return found

    def _walked(self, beside: "_Slice", accepted: AcceptedLength, stop: StopSignal) -> dict[str, Tensor]:
        rounds: dict[str, Tensor] = {}
        beside.each(lambda micro: add(rounds, accepted.sums(micro.batch)), stop)
        return rounds


class _Slice:
    """Held-out samples as this rank goes through them."""

    def __init__(self, task: Task, held_out: HeldOut, looking: Looking) -> None:
        self._task, self._ranks, samples = task, looking.ranks, held_out.samples
        chosen = _chosen(samples, task.spec.seed, held_out.most)
        self._shared = len(chosen) >= self._ranks.count  # each rank has something to do; else all do everything
        own = chosen[self._ranks.rank :: self._ranks.count] if self._shared else chosen
        rows = [[draw] for draw in own]
        pieces = [rows[start : start + looking.micro_batch] for start in range(0, len(rows), looking.micro_batch)]
        self._share = Share(pieces=pieces, tokens=sum(samples.length(draw.number) for draw in chosen))
        self._reader = Reader(samples=samples, share=lambda _: self._share, supervise=task.supervise, pace=looking.pace)
        self.ids = [samples.sample_id(draw.number) for draw in chosen]
        """Of all samples that are looked at, by all ranks."""

    def denominators(self) -> dict[str, Tensor]:
        """Return what losses are divided by, on the task's device."""
        found = total_denominators(self._reader.plan(piece) for piece in self._share.pieces)
        return self.summed(on_device(found, self._task.device))

    def each(self, take: Callable[[MicroBatch], None], stop: StopSignal) -> None:
        """Have every micro-batch taken, on the task's device, unless asked to stop."""
        with closing(self._reader.steps(0, 1)) as steps:
            for micro in self._task.moved(next(steps).micro_batches()):
                if stop.asked:
                    return
                take(micro)

    def summed(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over all samples from those over this rank's."""
        return self._ranks.sum_named(totals) if self._shared else totals


def _on_host(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in sums.items()}


def _chosen(samples: Samples, seed: int, limit: int) -> list[Draw]:
    """Return the held-out samples used, chosen by a hash of their ids, longest first."""
    numbers = samples.order(EPOCH)
    draws = [Draw(number=n, epoch=EPOCH, key=key_of(seed, EPOCH, samples.sample_id(n))) for n in numbers]
    chosen = sorted(draws, key=lambda draw: draw.key)[:limit]
    return sorted(chosen, key=lambda draw: -samples.length(draw.number))
