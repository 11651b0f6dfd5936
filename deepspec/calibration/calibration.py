"""Is the draft as sure as it should be? Calibration of its confidence by position.

The confidence of position k is the product of the slots' confidences through k: the chance that the first k drafted
tokens are all accepted. It is compared with whether they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import Floats

BINS = 20
"""Of width 0.05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How well the confidence of one position matches what happens there."""

    position: int
    """From 1."""
    count: int
    """Rounds that proposed so far."""
    ece: float
    """Expected calibration error, over bins of width 0.05."""
    auroc: float
    """Chance that an accepted round is trusted more than a rejected one; NaN where there is only one kind."""
    brier: float
    predicted: float
    observed: float
    bins: tuple[Bin, ...]
    """Those that are not empty."""


def traces(samples: Sequence[Decoded]) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return confidence logits `(N, K)`, proposed `(N,)` and accepted `(N,)` of all rounds that tell confidences."""
    rounds = [each for sample in samples for each in sample.rounds if each.confidence]
    slots = len(rounds[0].confidence) if rounds else 0
    logits = np.array([each.confidence for each in rounds], dtype=np.float64).reshape(len(rounds), slots)
    proposed = np.array([each.proposed for each in rounds], dtype=np.int64)
    return logits, proposed, np.array([each.accepted for each in rounds], dtype=np.int64)


def calibration(samples: Sequence[Decoded], temperatures: Sequence[float] = ()) -> list[Calibration]:
    """Return the calibration of each position; empty where the draft tells no confidence.

    Args:
        samples: decoded ones.
        temperatures: one per slot, dividing its logit; none: 1.
    """
    logits, proposed, accepted = traces(samples)
    chances = survival(logits, temperatures)
    rows = []
    for k in range(chances.shape[1]):
        seen = proposed > k
        rows.append(calibration_of(k + 1, chances[seen, k], (accepted[seen] > k).astype(np.float64)))
    return rows


def survival(logits: Floats, temperatures: Sequence[float] = ()) -> Floats:
    """Return the chance that all slots through each one are accepted, `(N, K)`."""
    scale = np.ones(logits.shape[1])
    scale[: len(temperatures)] = list(temperatures)[: logits.shape[1]]
    return np.asarray(np.cumprod(sigmoid(logits / scale), axis=1), dtype=np.float64)


def calibration_of(position: int, chance: Floats, happened: Floats) -> Calibration:
    """Return the calibration of predicted chances `(N,)` against what happened, `(N,)` of 0 and 1."""
    bins = _bins(chance, happened)
    total = max(len(chance), 1)
    return Calibration(
        position=position,
        count=len(chance),
        ece=sum(each.count * abs(each.predicted - each.observed) for each in bins) / total,
        auroc=auroc(chance, happened),
        brier=_mean((chance - happened) ** 2),
        predicted=_mean(chance),
        observed=_mean(happened),
        bins=tuple(bins),
    )


def _bins(chance: Floats, happened: Floats) -> list[Bin]:
    place = bin_of(chance)
    return [
        Bin(
            low=each / BINS,
            high=(each + 1) / BINS,
            count=int((place == each).sum()),
            predicted=float(chance[place == each].mean()),
            observed=float(happened[place == each].mean()),
        )
        for each in np.unique(place)
    ]


def bin_of(chance: Floats) -> NDArray[np.int64]:
    """Return the bin of each chance, from 0."""
    return np.minimum((chance * BINS).astype(np.int64), BINS - 1)


def auroc(chance: Floats, happened: Floats) -> float:
    """Return the area under the ROC curve by ranks (Mann-Whitney), ties counted half; NaN where all is of one kind."""
    positive = happened == 1
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    return float((_ranks(chance)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1, of equal values their mean; scipy.stats has it, too, and takes half a second to import."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places], dtype=np.float64)


def sigmoid(logits: Floats) -> Floats:
    """Return the confidences of logits."""
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
