"""Samples that have a number, a length and an order, and states that are kept of them by their size."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import NoReturn

import numpy as np

from deepspec.records.order import epoch_order
from deepspec.simulate.scenario import Scenario

_ROUNDS = 5
PART = 64
"""Samples of a part, and parts among which an epoch shuffles them, as in a small cache."""
WINDOW = 8


class ModelledSamples:
    """A training split of samples without contents; one of them stands for `grain` of a scenario's.

    Args:
        lengths: tokens of each.
        state_bytes: of one token.
        seed: of their order.
        heard: is told what is read next.
    """

    def __init__(self, lengths: list[int], state_bytes: int, seed: int, heard: Callable[[Sequence[int]], None]) -> None:
        """Read nothing."""
        self._lengths, self._seed, self._heard = lengths, seed, heard
        self.state_bytes = state_bytes

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._lengths)

    def order(self, epoch: int) -> Sequence[int]:
        """Return the numbers of all samples in the order of one epoch."""
        return _order(len(self), self._seed, epoch)

    def sample_id(self, number: int) -> str:
        """Return the id of a sample."""
        return str(number)

    def length(self, number: int) -> int:
        """Return the tokens of a sample."""
        return self._lengths[number]

    def ahead(self, numbers: Sequence[int]) -> None:
        """Hear which samples are read next."""
        self._heard(numbers)

    def record(self, number: int) -> NoReturn:
        """Refuse: there are no states."""
        raise NotImplementedError(f"sample {number} of a simulation has no states")

    def tokens(self, number: int) -> NoReturn:
        """Refuse: there are no tokens."""
        raise NotImplementedError(f"sample {number} of a simulation has no tokens")


@lru_cache(2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    numbers = np.arange(count, dtype=np.int64)
    found: list[int] = epoch_order(numbers, numbers // PART, seed=seed, epoch=epoch, window=WINDOW).tolist()
    return found


def lengths_of(scenario: Scenario) -> list[int]:
    """Return the tokens of each simulated sample; their mean is that of the scenario's, times its grain."""
    rng, count, grain = Random(scenario.seed), max(1, round(scenario.samples / scenario.grain)), scenario.grain
    drawn = [rng.lognormvariate(0.0, scenario.length_spread / grain**0.5) for _ in range(count)]
    mean, most = scenario.tokens * grain, (scenario.longest or math.inf) * grain
    scale = mean * count / sum(drawn)
    for _ in range(_ROUNDS if scenario.longest else 0):  # what is cut off the longest ones, the others have more
        scale *= mean * count / sum(min(most, length * scale) for length in drawn)
    return [max(1, round(min(most, length * scale))) for length in drawn]


class ModelledKept:
    """Which samples are kept: what came first stays, as `deepspec.gathering.kept` has it.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        """Keep nothing yet."""
        self._room, self._numbers = limit, set[int]()

    def has(self, number: int) -> bool:
        """Return whether a sample is kept."""
        return number in self._numbers

    def put(self, number: int, size: int) -> None:
        """Keep a sample if there is room."""
        if size <= self._room and number not in self._numbers:
            self._room -= size
            self._numbers.add(number)
