"""Temperatures for the confidence head, each held against rounds that its fit has not seen.

They are fitted in order of position with the earlier ones fixed: DSpark, arXiv 2607.05147. A fit on few rounds follows
their noise and can make other confidences worse. So each is judged by cross-validation: samples are dealt into folds,
a temperature is fitted without each fold and applied to it. It is used where the expected calibration error of those
rounds falls, the whole 95 % interval of the change (bootstrap over samples) below zero; else the confidences of that
position stay as they are. Where all temperatures together make some position worse for certain, none is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepspec.calibration.calibration import BINS, bin_of, sigmoid, traces
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import Estimate, Floats, resampled

FOLDS = 5
"""Folds that samples are dealt into; with fewer samples nothing can be told, and nothing is fitted."""
SEARCHED = np.exp(np.linspace(np.log(0.1), np.log(10.0), 161))
"""Temperatures tried for each position: 0.1 to 10, 1 among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """The temperature of one position."""

    position: int
    """From 1."""
    temperature: float
    difference: Estimate
    """Of the expected calibration error on rounds that the fit has not seen: with it less without it."""
    kept: bool


def fit_temperatures(samples: Sequence[Decoded], seed: int = 0) -> tuple[Fit, ...]:
    """Return the temperature of each position, kept where it helps; none where too few samples tell confidences.

    Args:
        samples: decoded prompts that are not evaluated.
        seed: of the intervals.
    """
    telling = [sample for sample in samples if any(each.confidence for each in sample.rounds)]
    if len(telling) < FOLDS:
        return ()
    rounds = _Rounds(telling, seed)
    fits = tuple(rounds.fit(k) for k in range(rounds.logits.shape[1]))
    return tuple(replace(each, kept=False) for each in fits) if rounds.harmed else fits


def used(fits: Sequence[Fit]) -> tuple[float, ...]:
    """Return the temperatures to divide confidence logits by: 1 where one is not kept, none where no one is."""
    return tuple(each.temperature if each.kept else 1.0 for each in fits) if any(each.kept for each in fits) else ()


def best_temperature(logits: Floats, before: Floats, happened: Floats) -> float:
    """Return the temperature of one position with the least expected calibration error; of equals the nearest to 1.

    Args:
        logits: `(N,)` of that position.
        before: `(N,)` chance that all positions before it are accepted.
        happened: `(N,)` 1 where it was accepted, else 0.
    """

    def badness(temperature: float) -> tuple[float, float]:
        chance = before * sigmoid(logits / temperature)
        gaps = np.bincount(bin_of(chance), weights=chance - happened, minlength=BINS)
        return round(float(np.abs(gaps).sum()) / len(logits), 6), abs(float(np.log(temperature)))

    return float(min(SEARCHED, key=badness)) if len(logits) else 1.0


class _Rounds:
    """Rounds that tell confidences, and the chance that all positions so far are accepted, by three kinds of fit."""

    def __init__(self, samples: Sequence[Decoded], seed: int) -> None:
        self.logits, self._proposed, self._accepted = traces(samples)
        told = [sum(bool(each.confidence) for each in sample.rounds) for sample in samples]
        self._owner = np.repeat(np.arange(len(samples)), told)
        self._fold = self._owner % FOLDS
        self._count, self._seed = len(samples), seed
        self._plain = np.ones(len(self.logits))
        """By no temperature."""
        self._whole = np.ones(len(self.logits))
        """By those kept, fitted on all rounds."""
        self._without = np.ones((FOLDS, len(self.logits)))
        """By those kept, fitted without each fold: `(folds, rounds)`."""
        self.harmed = False
        """Whether what is kept makes a position worse for certain."""

    def fit(self, k: int) -> Fit:
        """Fit the temperature of slot k, and go on with it where it helps."""
        logits, seen = self.logits[:, k], self._proposed > k
        temperature = self._best(self._whole, k, seen)
        temperatures = np.array([[self._best(self._without[f], k, seen & (self._fold != f))] for f in range(FOLDS)])
        plain = sigmoid(logits)
        tried, left = self._without * sigmoid(logits / temperatures), self._without * plain
        difference = self._change(k, self._unseen(tried), self._unseen(left))
        kept = bool(difference.high < 0)
        self._plain = self._plain * plain
        self._whole = self._whole * (sigmoid(logits / temperature) if kept else plain)
        self._without = tried if kept else left
        self.harmed |= bool(self._change(k, self._unseen(self._without), self._plain).low > 0)
        return Fit(position=k + 1, temperature=temperature, difference=difference, kept=kept)

    def _best(self, before: Floats, k: int, chosen: NDArray[np.bool_]) -> float:
        happened = (self._accepted > k).astype(np.float64)
        return best_temperature(self.logits[chosen, k], before[chosen], happened[chosen])

    def _unseen(self, chances: Floats) -> Floats:
        """Return the chance of each round by the fit without its fold."""
        return np.asarray(chances[self._fold, np.arange(len(self._fold))], dtype=np.float64)

    def _change(self, k: int, first: Floats, second: Floats) -> Estimate:
        """Return how much larger the expected calibration error of slot k is by the first chances."""
        seen = self._proposed > k
        gaps = [self._gaps(k, each, seen) for each in (first, second)]
        rounds = np.bincount(self._owner[seen], minlength=self._count).astype(np.float64)

        def change(weights: Floats) -> Floats:
            errors = [np.abs(weights @ gap).sum(1) for gap in gaps]
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray((errors[0] - errors[1]) / (weights @ rounds), dtype=np.float64)

        return resampled(change, self._count, self._seed, centred=True)

    def _gaps(self, k: int, chance: Floats, seen: NDArray[np.bool_]) -> Floats:
        """Return predicted less observed acceptances of slot k, summed by sample and bin: `(samples, BINS)`."""
        happened = (self._accepted[seen] > k).astype(np.float64)
        place = self._owner[seen] * BINS + bin_of(chance[seen])
        found = np.bincount(place, weights=chance[seen] - happened, minlength=self._count * BINS)
        return np.asarray(found, dtype=np.float64).reshape(self._count, BINS)
