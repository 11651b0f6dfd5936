"""What people see while answers are made: rates, time left, and the health of each endpoint."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from deepspec.regenerate.dispatcher import Dispatcher, Lane
from deepspec.regenerate.parts import Book
from deepspec.report import Report

WINDOW_SECONDS = 30.0
"""Time over which rates are taken."""
TABLE_SECONDS = 60.0
"""Time between two looks at the endpoints, unless one of them goes down or comes back."""
TABLE = "endpoints"


class Progress:
    """Tells a report how far the answers are."""

    def __init__(self, book: Book, dispatcher: Dispatcher, report: Report) -> None:
        """Start the clock."""
        self._book = book
        self._dispatcher = dispatcher
        self._report = report
        self._marks: deque[tuple[float, int, int]] = deque()
        self._tabled_at = time.monotonic()
        self._down: set[str] = set()

    def tick(self) -> None:
        """Tell the rates of the last half minute; now and then also the endpoints."""
        now = time.monotonic()
        tokens = sum(lane.tokens for lane in self._dispatcher.lanes)
        self._marks.append((now, self._book.answered, tokens))
        while now - self._marks[0][0] > WINDOW_SECONDS:
            self._marks.popleft()
        since, answered, tokens_then = self._marks[0]
        seconds = max(now - since, 1e-9)
        note = self._note((self._book.answered - answered) / seconds, (tokens - tokens_then) / seconds)
        self._report.progress(self._book.done, self._book.total, "rows", note)
        if self._tell_changes() or now - self._tabled_at > TABLE_SECONDS:
            self._tabled_at = now
            self.table()

    def table(self) -> None:
        """Show each endpoint's health and share."""
        self._report.table(TABLE, [endpoint_row(lane) for lane in self._dispatcher.lanes])

    def _tell_changes(self) -> bool:
        """Say which endpoints went down or came back since the last look; return whether any did."""
        down = {lane.engine.label: lane.last_failure for lane in self._dispatcher.lanes if lane.tripped}
        for label in sorted(down.keys() - self._down):
            self._report.log(f"{label} is down ({down[label]}); the others answer until it is back")
        for label in sorted(self._down - down.keys()):
            self._report.log(f"{label} is back")
        changed = down.keys() != self._down
        self._down = set(down)
        return changed

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


def accounts(counts: Mapping[str, Any]) -> str:
    """Return the sums of a finished run in one line."""
    told = [
        f"{counts['input']} prompts = "
        + " + ".join(f"{counts[status]} {status}" for status in ("success", "error", "skipped")),
        f"{counts['completion_tokens']} tokens generated, {counts['truncated']} rows cut by max_tokens",
        ", ".join(f"{rows} by {name}" for name, rows in counts["endpoints"].items()),
        *(f"{rows} × {reason}" for reason, rows in counts["reasons"].items()),
    ]
    if counts["prompt_drifted"]:
        told.append(f"{counts['prompt_drifted']} rows whose prompt the engine renders unlike the target's own template")
    return "; ".join(filter(None, told))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
