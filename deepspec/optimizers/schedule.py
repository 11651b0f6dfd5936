"""The learning rate of each step: linear warm-up, then a cosine to 0, or the peak and a linear fall at the end."""

import math

from deepspec.optimizers.optimization import Optimization


def rate_of(step: int, total: int, spec: Optimization) -> float:
    """Return the rate of one step of a run, by the schedule of its spec."""
    if spec.schedule == "wsd":
        return stable(step, total, spec.learning_rate, spec.warmup_ratio, spec.decay_ratio)
    return learning_rate(step, total, spec.learning_rate, spec.warmup_ratio)


def stable(step: int, total: int, peak: float, warmup_ratio: float, decay_ratio: float) -> float:
    """Return the rate of one step that climbs, stays and falls (WSD); a pure function, as `learning_rate` is.

    Args:
        step: from 0.
        total: steps of the run.
        peak: highest rate.
        warmup_ratio: share of the steps that climb; rounded down to whole steps.
        decay_ratio: share of the steps that fall, the last one to a step above 0; rounded up.
    """
    warmup, decay = int(warmup_ratio * total), math.ceil(decay_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * min(1.0, (total - step) / (decay + 1))


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float) -> float:
    """Return the rate of one step; a pure function, so that a resumed run cannot drift.

    Args:
        step: from 0.
        total: steps of the run.
        peak: highest rate, reached by the last warm-up step and never exceeded.
        warmup_ratio: share of the steps that climb; rounded down to whole steps.
    """
    warmup = int(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
