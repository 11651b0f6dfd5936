"""Numbers with their intervals, as files hold them and as people read them."""

import math

from pydantic import BaseModel, ConfigDict

from deepspec.rounds.measure import Estimate


class Frozen(BaseModel):
    """What is written once: it never changes, and knows all of its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Frozen):
    """A number with its 95 % interval, by bootstrap over samples."""

    value: float | None
    low: float | None
    high: float | None


def interval(estimate: Estimate) -> Interval:
    """Return an estimate as it is written: NaN becomes null."""
    return Interval(value=_known(estimate.value), low=_known(estimate.low), high=_known(estimate.high))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def with_interval(found: Interval, digits: int = 3) -> str:
    """Return a number with its interval where there is one."""
    if found.value is None:
        return "n/a"
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def overlap(one: Interval, other: Interval) -> bool:
    """Return whether two intervals have a number in common; an unknown one has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high
