"""From traces to scores."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from deepspec.calibration.calibration import Calibration, calibration, survival, traces
from deepspec.calibration.fitting import Fit, used
from deepspec.formats.numbers import interval
from deepspec.formats.scores import (
    Acceptance,
    CalibrationScore,
    PositionCalibration,
    PositionFit,
    Reliability,
    Slice,
    ThresholdScore,
)
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import Estimate, estimates, tally

EDGES: Mapping[Literal["output_length", "context_length"], tuple[int, ...]] = {
    "output_length": (0, 64, 256, 1024, 1 << 30),
    "context_length": (0, 128, 512, 2048, 1 << 30),
}
"""Lengths at which samples are parted into groups."""


THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the cumulative confidence whose effect is told."""


def acceptance(samples: Sequence[Decoded], slots: int, seed: int) -> Acceptance | None:
    """Return the acceptance of some samples with intervals; None where no round was decoded.

    Args:
        samples: decoded ones.
        slots: tokens proposed per round, at most.
        seed: of the intervals.
    """
    counted = [sample for sample in samples if sample.rounds]
    if not counted:
        return None
    sums = tally(counted, slots)
    found = estimates(sums, seed)
    by_position = {name: tuple(interval(each) for each in found[name]) for name in ("cumulative", "conditional")}
    plain = {name: interval(each) for name, each in found.items() if isinstance(each, Estimate)}
    return Acceptance(
        samples=len(counted), rounds=int(sums.rounds.sum()), tokens=int(sums.tokens.sum()), **plain, **by_position
    )


def slices(samples: Sequence[Decoded], temperature: float, slots: int, seed: int) -> list[Slice]:
    """Return acceptance by length of the output and of the context."""
    found = []
    for by, edges in EDGES.items():
        for low, high in itertools.pairwise(edges):
            group = acceptance([each for each in samples if low <= _length(each, by) < high], slots, seed)
            if group is not None:
                found.append(Slice(by=by, low=low, high=high, temperature=temperature, acceptance=group))
    return found


def calibration_score(
    samples: Sequence[Decoded], temperature: float, fits: Sequence[Fit], fitted_rounds: int
) -> CalibrationScore | None:
    """Return the calibration before and after confidence temperatures; None where the draft tells no confidence.

    Args:
        samples: of the benchmarks, at a temperature.
        temperature: that one.
        fits: the confidence temperatures; those that are kept are applied.
        fitted_rounds: rounds that they were fitted on.
    """
    before = calibration(samples)
    if not before:
        return None
    temperatures = used(fits)
    return CalibrationScore(
        temperature=temperature,
        confidence_temperatures=temperatures,
        fitted_rounds=fitted_rounds,
        fits=tuple(_position_fit(each) for each in fits),
        before=tuple(_position(each) for each in before),
        after=tuple(_position(each) for each in calibration(samples, temperatures)),
        thresholds=tuple(_at_threshold(samples, temperatures, each) for each in THRESHOLDS),
    )


def _position_fit(found: Fit) -> PositionFit:
    return PositionFit(
        position=found.position,
        temperature=found.temperature,
        difference=interval(found.difference),
        kept=found.kept,
    )


def _at_threshold(samples: Sequence[Decoded], temperatures: Sequence[float], threshold: float) -> ThresholdScore:
    """Return what recorded rounds would have given, had their proposals been cut at a threshold."""
    logits, proposed, accepted = traces(samples)
    trusted = (survival(logits, temperatures) >= threshold).cumprod(axis=1).sum(axis=1)
    lengths = np.minimum(trusted, proposed)
    made = np.minimum(accepted, lengths) + 1
    return ThresholdScore(
        threshold=threshold,
        proposal_length=float(lengths.mean()),
        accepted_length=float(made.mean()),
        verify_rate=float(made.sum() / (lengths + 1).sum()),
    )


def _length(sample: Decoded, by: str) -> int:
    return len(sample.tokens) if by == "output_length" else sample.prompt_tokens


def _position(found: Calibration) -> PositionCalibration:
    numbers = {
        name: None if math.isnan(value) else value
        for name, value in (
            ("ece", found.ece),
            ("auroc", found.auroc),
            ("brier", found.brier),
            ("predicted", found.predicted),
            ("observed", found.observed),
        )
    }
    bins = tuple(
        Reliability(low=b.low, high=b.high, count=b.count, predicted=b.predicted, observed=b.observed)
        for b in found.bins
    )
    return PositionCalibration(position=found.position, count=found.count, bins=bins, **numbers)
