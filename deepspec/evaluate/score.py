"""From traces to scores."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deepspec.decoding.measure import Estimate, estimates, tally
from deepspec.decoding.results import Decoded
from deepspec.evaluate.calibration import Calibration, calibration
from deepspec.formats.scores import (
    Acceptance,
    CalibrationScore,
    PositionCalibration,
    Reliability,
    Slice,
    interval,
)

EDGES: Mapping[Literal["output_length", "context_length"], tuple[int, ...]] = {
    "output_length": (0, 64, 256, 1024, 1 << 30),
    "context_length": (0, 128, 512, 2048, 1 << 30),
}
"""Lengths at which samples are parted into groups."""


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
    samples: Sequence[Decoded], temperature: float, temperatures: Sequence[float], fitted_rounds: int
) -> CalibrationScore | None:
    """Return the calibration before and after confidence temperatures; None where the draft tells no confidence."""
    before = calibration(samples)
    if not before:
        return None
    return CalibrationScore(
        temperature=temperature,
        confidence_temperatures=tuple(temperatures),
        fitted_rounds=fitted_rounds,
        before=tuple(_position(each) for each in before),
        after=tuple(_position(each) for each in calibration(samples, temperatures)),
    )


def acceptance_row(name: str, temperature: float, found: Acceptance | None) -> dict[str, Any]:
    """Return one row of the table that people read."""
    row: dict[str, Any] = {"benchmark": name, "temperature": temperature}
    if found is None:
        return row
    row |= {
        "samples": found.samples,
        "accepted length (with bonus)": _told(found.accepted_length.value),
        "95 % interval": f"{_told(found.accepted_length.low)} to {_told(found.accepted_length.high)}",
        "without bonus": _told(found.accepted_length_without_bonus.value),
        "verify rate": _told(found.verify_rate.value),
        "tau_deepspec": _told(found.tau_deepspec.value),
    }
    return row | {f"accepted at {k}": _told(each.value) for k, each in enumerate(found.cumulative, 1)}


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


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
