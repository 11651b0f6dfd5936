"""The held-out slice: loss and acceptance of the draft as it is, and the accepted length that decoding would have."""

import time
from contextlib import closing

import torch
from torch import Tensor

from deepspec.records.batch import on_device
from deepspec.records.stream import Draw, Samples, Share, key_of
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import Pace, Reader
from deepspec.steps.stop import StopSignal
from deepspec.train.accepted import AcceptedLength, Answered
from deepspec.train.task import Task, add, total_denominators

EPOCH = -1
"""Epoch in the keys of held-out samples: the same anchors at every look, and none that training draws."""


class Validation:
    """Looks at the same held-out samples, in the same way, as often as asked.

    Args:
        task: what is trained.
        samples: the validation split.
        ranks: who shares the work.
        micro_batch: samples per forward pass.
        pace: how far and how wide to read ahead.
        answered: what is known of the answers.
    """

    def __init__(
        self, task: Task, samples: Samples, ranks: Ranks, micro_batch: int, pace: Pace, answered: Answered
    ) -> None:
        """Choose the samples and sum the denominators, which depend on no weight."""
        self._task, self._ranks = task, ranks
        chosen = _chosen(samples, task.spec.seed, task.spec.validation_samples)
        self._shared = len(chosen) >= ranks.count  # each rank has something to do; else all do everything
        own = chosen[ranks.rank :: ranks.count] if self._shared else chosen
        rows = [[draw] for draw in own]
        pieces = [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]
        share = Share(pieces=pieces, tokens=sum(samples.length(draw.number) for draw in chosen))
        self._reader = Reader(samples=samples, share=lambda _: share, supervise=task.supervise, pace=pace)
        found = total_denominators(self._reader.plan(piece) for piece in pieces)
        self._denominators = self._sum(on_device(found, task.device))
        ids = [samples.sample_id(draw.number) for draw in chosen]
        self._accepted = AcceptedLength(task, ids, answered) if task.spec.walked_tokens else None
        self.seconds = 0.0
        """That all looks so far have taken."""

    @property
    def walking(self) -> float:
        """Return the seconds that all looks so far have taken for the accepted length."""
        return 0.0 if self._accepted is None else self._accepted.seconds

    @torch.no_grad()
    def look(self, stop: StopSignal) -> dict[str, float] | None:
        """Return `loss`, the algorithm's metrics and those of `AcceptedLength`, the same on every rank; None where one
        was asked to stop.
        """
        begin = time.perf_counter()
        totals: dict[str, Tensor] = {}
        rounds: dict[str, Tensor] = {}
        with closing(self._reader.steps(0, 1)) as steps:
            for micro in self._task.moved(next(steps).micro_batches()):
                if stop.asked:
                    break
                result = self._task.loss(micro, self._denominators, look=True)
                add(totals, {"loss": result.loss, **result.sums})
                if self._accepted is not None:
                    add(rounds, self._accepted.sums(micro.batch))
        if self._ranks.any(stop.asked):
            return None
        sums = self._sum(totals)
        found = {"loss": float(sums.pop("loss")), **self._task.algorithm.metrics(sums)}
        if self._accepted is not None:
            found |= self._accepted.metrics({name: value.cpu() for name, value in self._sum(rounds).items()})
        self.seconds += time.perf_counter() - begin
        return found

    def _sum(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._ranks.sum_named(totals) if self._shared else totals


def _chosen(samples: Samples, seed: int, limit: int) -> list[Draw]:
    """Return the held-out samples used, chosen by a hash of their ids, longest first."""
    numbers = samples.order(EPOCH)
    draws = [Draw(number=n, epoch=EPOCH, key=key_of(seed, EPOCH, samples.sample_id(n))) for n in numbers]
    chosen = sorted(draws, key=lambda draw: draw.key)[:limit]
    return sorted(chosen, key=lambda draw: -samples.length(draw.number))
