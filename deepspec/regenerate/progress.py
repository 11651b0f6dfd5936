"""What people see while answers are made: rates, time left, and the health of each endpoint."""

import time
from collections import deque
from typing import Any

from deepspec.artifacts import Report
from deepspec.regenerate.dispatcher import Dispatcher, Lane
from deepspec.regenerate.parts import Book

WINDOW_SECONDS = 30.0
"""Time over which rates are taken."""
TABLE_SECONDS = 10.0
"""Time between two looks at the endpoints."""
TABLE = "regenerate-endpoints"


class Progress:
    """Tells a report how far the answers are."""

    def __init__(self, book: Book, dispatcher: Dispatcher, report: Report) -> None:
        """Start the clock."""
        self._book = book
        self._dispatcher = dispatcher
        self._report = report
        self._marks: deque[tuple[float, int, int]] = deque()
        self._tabled_at = time.monotonic()

    def tick(self) -> None:
        """Tell the rates of the last half minute; now and then also the endpoints."""
        now = time.monotonic()
        tokens = sum(lane.tokens for lane in self._dispatcher.lanes)
        self._marks.append((now, self._book.done, tokens))
        while now - self._marks[0][0] > WINDOW_SECONDS:
            self._marks.popleft()
        since, done, tokens_then = self._marks[0]
        seconds = max(now - since, 1e-9)
        note = self._note((self._book.done - done) / seconds, (tokens - tokens_then) / seconds)
        self._report.progress(self._book.done, self._book.total, "rows", note)
        if now - self._tabled_at > TABLE_SECONDS:
            self._tabled_at = now
            self.table()

    def table(self) -> None:
        """Show each endpoint's health and share."""
        self._report.table(TABLE, [endpoint_row(lane) for lane in self._dispatcher.lanes])

    def _note(self, rows: float, tokens: float) -> str:
        up = sum(lane.is_open for lane in self._dispatcher.lanes)
        left = f", {_duration((self._book.total - self._book.done) / rows)} left" if rows else ""
        return f"{rows:.1f} rows/s, {tokens:.0f} tokens/s{left}, {up} of {len(self._dispatcher.lanes)} endpoints up"


def endpoint_row(lane: Lane) -> dict[str, Any]:
    """Return what to show of one endpoint."""
    return {
        "endpoint": lane.engine.label,
        "state": lane.state,
        "in flight": f"{lane.in_flight} of {lane.concurrency.limit}",
        "answers": lane.answers,
        "tokens": lane.tokens,
        "seconds per answer": round(lane.seconds / lane.answers, 2) if lane.answers else None,
        "failures": sum(lane.failures.values()),
        "last failure": lane.last_failure,
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
