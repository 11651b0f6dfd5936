"""The held-out slice: loss, acceptance and expected accepted length of the draft as it is."""

from contextlib import closing

import torch
from torch import Tensor

from deepspec.records.batch import on_device
from deepspec.records.stream import Draw, Samples, Share, key_of
from deepspec.train.ranks import Ranks
from deepspec.train.reader import Pace, Reader
from deepspec.train.stop import StopSignal
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
    """

    def __init__(self, task: Task, samples: Samples, ranks: Ranks, micro_batch: int, pace: Pace) -> None:
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

    @torch.no_grad()
    def look(self, stop: StopSignal) -> dict[str, float] | None:
        """Return `loss` and the algorithm's metrics, the same on every rank; None where one was asked to stop."""
        totals: dict[str, Tensor] = {}
        with closing(self._reader.steps(0, 1)) as steps:
            for micro in self._task.moved(next(steps).micro_batches()):
                if stop.asked:
                    break
                result = self._task.loss(micro, self._denominators, look=True)
                add(totals, {"loss": result.loss, **result.sums})
        if self._ranks.any(stop.asked):
            return None
        sums = self._sum(totals)
        return {"loss": float(sums.pop("loss")), **self._task.algorithm.metrics(sums)}

    def _sum(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._ranks.sum_named(totals) if self._shared else totals


def _chosen(samples: Samples, seed: int, limit: int) -> list[Draw]:
    """Return the held-out samples used, chosen by a hash of their ids, longest first."""
    numbers = samples.order(EPOCH)
    draws = [Draw(number=n, epoch=EPOCH, key=key_of(seed, EPOCH, samples.sample_id(n))) for n in numbers]
    chosen = sorted(draws, key=lambda draw: draw.key)[:limit]
    return sorted(chosen, key=lambda draw: -samples.length(draw.number))
