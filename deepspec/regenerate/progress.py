"""What people see while answers are made: rates, time left, and the health of each endpoint."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from deepspec.asking.engine import AskedEngines, Engine
from deepspec.engines.dispatcher import Lane
from deepspec.engines.patience import until
from deepspec.regenerate.parts import Book
from deepspec.report import Report

WINDOW_SECONDS = 30.0
"""Time over which rates are taken."""
TABLE_SECONDS = 60.0
"""Time between two looks at the endpoints, unless one of them goes down or comes back."""
TOLD_PAUSE_SECONDS = 60.0
"""Pauses that an endpoint asks for are told from here on; shorter ones come with load."""
MOST_REASONS, LONGEST_REASON = 5, 120
"""Reasons that the last line of a run names, and characters of each; all are in the rows."""
TABLE = "endpoints"


class Progress:
    """Tells a report how far the answers are."""

    def __init__(self, book: Book, dispatcher: AskedEngines, report: Report) -> None:
        """Start the clock."""
        self._book = book
        self._dispatcher = dispatcher
        self._report = report
        self._marks: deque[tuple[float, int, int]] = deque()
        self._tabled_at = time.monotonic()
        self._down: set[str] = set()
        self._resting: set[str] = set()

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
        self._report.table(TABLE, [_endpoint_row(lane) for lane in self._dispatcher.lanes])

    def _tell_changes(self) -> bool:
        """Say which endpoints went down, came back or ask to be left alone; return whether any changed."""
        lanes = {lane.engine.label: lane for lane in self._dispatcher.lanes}
        resting = {label for label, lane in lanes.items() if lane.seconds_paused > self._shortest_told(label)}
        down = {label for label, lane in lanes.items() if not lane.is_trusted} - resting
        for label in sorted(resting - self._resting):
            told = f"until {until(lanes[label].seconds_paused)} ({lanes[label].last_failure})"
            self._report.log(f"{label} asks to be left alone {told}")
        for label in sorted(down - self._down):
            then = "the others answer until it is back" if len(lanes) > 1 else "it is tried again until it is back"
            self._report.log(f"{label} is down ({lanes[label].last_failure}); {then}")
        for label in sorted((self._down | self._resting) - down - resting):
            self._report.log(f"{label} is back")
        changed = (down, resting) != (self._down, self._resting)
        self._down, self._resting = down, resting
        return changed

    def _shortest_told(self, label: str) -> float:
        """Return which pauses are told: one that was is over only at its end."""
        return 0.0 if label in self._resting else TOLD_PAUSE_SECONDS

    def _note(self, rows: float, tokens: float) -> str:
        up = sum(lane.is_open for lane in self._dispatcher.lanes)
        left = f", {_duration((self._book.total - self._book.done) / rows)} left" if rows else ""
        return f"{rows:.1f} rows/s, {tokens:.0f} tokens/s{left}, {up} of {len(self._dispatcher.lanes)} endpoints up"


def _endpoint_row(lane: Lane[Engine]) -> dict[str, Any]:
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
        *_reasons(counts["reasons"]),
        *(f"{counts[name]} rows {what}" for name, what in _REMARKS.items() if counts[name]),
    ]
    return "; ".join(filter(None, told))


_REMARKS = {
    "prompt_drifted": "answered to another prompt than the target's own template renders (errors)",
    "without_usage": "without the engine's count of tokens: that their prompts were not cut is not known",
    "date_unknown": "for which nobody can tell here which date their prompts printed, or whether they did",
}
"""Count -> what it says of so many rows."""


def _reasons(reasons: Mapping[str, int]) -> list[str]:
    counted = Counter(reasons).most_common()
    told = [f"{rows} × {_brief(reason)}" for reason, rows in counted[:MOST_REASONS]]
    rest = sum(rows for _, rows in counted[MOST_REASONS:])
    return [*told, f"{rest} × other reasons"] if rest else told


def _brief(reason: str) -> str:
    """Return what an engine said as a piece of one line."""
    line = " ".join(reason.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
