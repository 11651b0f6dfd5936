"""The held-out slice: loss, acceptance and expected accepted length of the draft as it is."""

from collections.abc import Iterator

import torch
from torch import Tensor

from deepspec.train.data import Draw, Samples, key_of, read_micro_batches
from deepspec.train.ranks import Ranks
from deepspec.train.stop import StopSignal
from deepspec.train.task import Supervised, Task, add, total_denominators

EPOCH = -1
"""Epoch in the keys of held-out samples: the same anchors at every look, and none that training draws."""


class Validation:
    """Looks at the same held-out samples, in the same way, as often as asked.

    Args:
        task: what is trained.
        samples: the validation split.
        ranks: who shares the work.
        micro_batch: samples per forward pass.
    """

    def __init__(self, task: Task, samples: Samples, ranks: Ranks, micro_batch: int) -> None:
        """Choose the samples and sum the denominators, which depend on no weight."""
        self._task = task
        self._samples = samples
        self._ranks = ranks
        chosen = _chosen(samples, task.spec.seed, task.spec.validation_samples)
        self._shared = len(chosen) >= ranks.count  # each rank has something to do; else all do everything
        own = chosen[ranks.rank :: ranks.count] if self._shared else chosen
        rows = [[draw] for draw in own]
        self._pieces = [rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)]
        self._denominators = self._sum(total_denominators(self._supervised()))

    @torch.no_grad()
    def look(self, stop: StopSignal) -> dict[str, float] | None:
        """Return `loss` and the algorithm's metrics, the same on every rank; None where one was asked to stop."""
        totals: dict[str, Tensor] = {}
        for supervised in self._supervised():
            if stop.asked:
                break
            result = self._task.loss(supervised, self._denominators, look=True)
            add(totals, {"loss": result.loss, **result.sums})
        if self._ranks.any(stop.asked):
            return None
        sums = self._sum(totals)
        return {"loss": float(sums.pop("loss")), **self._task.algorithm.metrics(sums)}

    def _supervised(self) -> Iterator[Supervised]:
        for piece in self._pieces:
            for micro in read_micro_batches(self._samples, [piece]):
                yield self._task.supervise(micro)

    def _sum(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._ranks.sum_named(totals) if self._shared else totals


def _chosen(samples: Samples, seed: int, limit: int) -> list[Draw]:
    """Return the held-out samples used, chosen by a hash of their ids, longest first."""
    numbers = samples.order(EPOCH)
    draws = [Draw(number=n, epoch=EPOCH, key=key_of(seed, EPOCH, samples.sample_id(n))) for n in numbers]
    chosen = sorted(draws, key=lambda draw: draw.key)[:limit]
    return sorted(chosen, key=lambda draw: -samples.length(draw.number))
