"""How long a run waits for its endpoints, and until when they ask to be left alone, as people read it."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from deepspec.placement import Endpoint

PATIENCE_SECONDS = 600.0
"""How long a run waits while nothing is under way at any endpoint, where it is told nothing else."""
LONGER = "wait longer with DEEPSPEC_PATIENCE_SECONDS"
"""Advice, where that was not long enough."""


def longest_wait(endpoints: Iterable[Endpoint], told: float | None = None) -> float:
    """Return how long a run waits for its endpoints: as long as its own ones may take to start, in any case.

    Args:
        endpoints: that it asks.
        told: seconds that it was told to wait.
    """
    return max([PATIENCE_SECONDS if told is None else told, *(endpoint.start_seconds for endpoint in endpoints)])


class Patience:
    """Sums up the time in which nothing was under way at any endpoint. Times are seconds of any one clock.

    Only an answer to a row sets it back: an endpoint that passes every probe and answers no row is as good as none. An
    endpoint that works on a question, however slowly, does not count against it.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self._spent = 0.0
        self._idle_since: float | None = None

    def look(self, now: float, *, idle: bool) -> None:
        """Note whether nothing is under way from now on."""
        if self._idle_since is not None:
            self._spent += now - self._idle_since
        self._idle_since = now if idle else None

    def answered(self) -> None:
        """Begin anew: a row was answered."""
        self._spent = 0.0

    def spent(self, now: float) -> float:
        """Return the seconds since the last answer in which nothing was under way."""
        return self._spent + (0.0 if self._idle_since is None else now - self._idle_since)


def until(seconds: float, now: datetime | None = None) -> str:
    """Return the time of day in so many seconds, with the date where that is another day.

    Args:
        seconds: from now on.
        now: the time of day now; default: the clock's.
    """
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%Y-%m-%d %H:%M")
