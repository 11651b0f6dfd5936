"""The learning rate of each step: linear warm-up, then a cosine to 0."""

import math


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
