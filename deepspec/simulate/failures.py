"""When what fails."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from deepspec.simulate.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a process, as by kill -9."""

    at: float
    """Seconds from the beginning."""
    engine: int | None
    """Number of the engine; None: a rank of the trainer."""


def drawn(scenario: Scenario) -> list[Failure]:
    """Return the failures of a scenario, in order; those of each engine and each rank come by themselves."""
    found = [
        Failure(at, engine)
        for engine in range(scenario.engines)
        for at in _times(scenario.engine_mtbf, scenario.seconds, Random(f"{scenario.seed} engine {engine}"))
    ]
    for rank in range(scenario.ranks):
        times = _times(scenario.trainer_mtbf, scenario.seconds, Random(f"{scenario.seed} rank {rank}"))
        found += [Failure(at, None) for at in times]
    return sorted(found, key=lambda failure: failure.at)


def _times(mean: float | None, end: float, rng: Random) -> Iterator[float]:
    if mean is None:
        return
    at = rng.expovariate(1 / mean)
    while at < end:
        yield at
        at += rng.expovariate(1 / mean)
