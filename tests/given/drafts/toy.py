"""A tiny task in memory: learn a linear map from captured states to last states, at positions drawn by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from deepspec.algorithms import LossResult
from deepspec.records.batch import Batch, Record, Tokens, supervises
from deepspec.records.stream import Cut
from deepspec.steps.ranks import Ranks
from deepspec.train.loop import Loop
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task

CAPTURED, HIDDEN = 6, 4


class ToySamples:
    """Random records of different lengths; the states follow a hidden linear map."""

    def __init__(self, count: int = 12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._map = torch.randn(CAPTURED, HIDDEN, generator=torch.Generator().manual_seed(99))
        self.records = [self._record(n, generator) for n in range(count)]

    def _record(self, number: int, generator: torch.Generator) -> Record:
        length = 5 + number % 7
        hidden, mask = torch.randn(length, CAPTURED, generator=generator), torch.arange(length) > 1
        return Record(
            sample_id=f"sample-{number}",
            input_ids=torch.arange(length),
            loss_mask=mask,
            hidden=hidden,
            last_hidden=(hidden @ self._map)[supervises(mask)],
        )

    state_bytes = 4 * (CAPTURED + HIDDEN)

    def __len__(self) -> int:
        return len(self.records)

    def order(self, epoch: int) -> Sequence[int]:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(epoch % 1000)).tolist()

    def sample_id(self, number: int) -> str:
        return self.records[number].sample_id

    def length(self, number: int) -> int:
        return len(self.records[number].input_ids)

    def ahead(self, numbers: Sequence[int]) -> None:
        pass

    def record(self, number: int) -> Record:
        return self.records[number]

    def tokens(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.records[number].input_ids, self.records[number].loss_mask


@dataclass(frozen=True)
class ToySupervision:
    weights: Tensor
    denominators: dict[str, Tensor]


class ToyAlgorithm:
    """Squared error at about half of the supervised positions, chosen by each sample's key."""

    def supervise(self, config: Any, objective: Any, batch: Tokens, keys: Sequence[int]) -> ToySupervision:
        weights = torch.zeros(batch.loss_mask.shape)
        for (row, start, end), key in zip(batch.spans(), keys, strict=True):
            chosen = torch.rand(end - start, generator=torch.Generator().manual_seed(key)) < 0.5
            chosen[-1] = True
            weights[row, start:end] = (chosen & batch.loss_mask[row, start:end]).float()
        return ToySupervision(weights, {"weight": weights.sum()})

    def loss(
        self,
        model: Any,
        batch: Batch,
        supervision: ToySupervision,
        denominators: Mapping[str, Tensor],
        *,
        measure: bool = True,
    ) -> LossResult:
        del measure
        error = (model(batch.hidden) - batch.last_hidden).float().pow(2).mean(-1) * supervision.weights
        loss = error.sum() / denominators["weight"]
        return LossResult(loss=loss, sums={"error": error.sum().detach(), "weight": supervision.weights.sum()})

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {"error": float(sums["error"] / sums["weight"]), "tau": 1.0}


class ToyModel(nn.Module):
    """Two layers, the second without bias, and a frozen weight that no step may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(algorithm="toy")
        self.first = nn.Linear(CAPTURED, 8)
        self.second = nn.Linear(8, HIDDEN, bias=False)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        generator = torch.Generator().manual_seed(5)
        for parameter in (self.first.weight, self.first.bias, self.second.weight):
            nn.init.normal_(parameter, 0, 0.3, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        second: Tensor = self.second(torch.tanh(self.first(hidden)))
        return second


def toy_loop(
    spec: TrainSpec, micro_batch: int = 2, ranks: Ranks | None = None, samples: Any = None, *, pack: bool = False
) -> Loop:
    """Return a loop over 12 training and 5 held-out samples."""
    spec = spec.but(watch="loss", walked_tokens=0)
    ranks = ranks or Ranks("cpu")
    model = ToyModel()
    toy: Any = {
        "config": model.config,
        "model": model,
        "algorithm": ToyAlgorithm(),
    }  # no draft, and no algorithm of ours
    task = Task(spec=spec, device=torch.device("cpu"), **toy)
    cut = Cut(ranks=ranks.count, micro_batch=micro_batch, pack=pack)
    loop = Loop(task, samples or ToySamples(), ranks, cut)
    if spec.validation_samples:
        loop.held_out = ToySamples(5, seed=1)
    return loop


def weights(loop: Loop) -> dict[str, Tensor]:
    """Return copies of the master weights by name."""
    return loop.optimizer.state()
