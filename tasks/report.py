"""What a stage says, as Prefect artifacts: progress, tables, pictures and texts of the task run."""

import base64
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from prefect.artifacts import Artifact, ImageArtifact, MarkdownArtifact, ProgressArtifact, TableArtifact
from prefect.logging import get_run_logger

from deepspec.page.page import plain
from tasks.shown import Shown

UPDATE_SECONDS = 5.0
"""Least time between two updates of a progress artifact: each is a request to the server."""

LINES = 200
"""Lines of one stage that go to the server's log as they come; the whole log is a file in the store."""

LAST = 10
"""Lines at a stage's end that are logged however many came before: there it says what became of its rows."""


class PrefectReport:
    """A report into the Prefect run that it is created in."""

    def __init__(self, stage: str) -> None:
        """Report on behalf of a stage; nothing is created until there is something to say."""
        self._stage = stage
        self._logger = get_run_logger()
        self._shown = Shown()
        self._first: tuple[float, float] | None = None
        self._updated = self._said = 0.0
        self._lines = self._held = 0
        self._last: deque[str] = deque(maxlen=LAST)
        """The newest of the lines held back."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Show how far the stage is, how fast, and when it will be done, at most every few seconds."""
        now = time.monotonic()
        percent = 100.0 * done / total if total else 0.0
        if self._first is None:
            self._first = (now, done)
        if percent < 100 and now - self._updated < UPDATE_SECONDS:
            return
        self._updated = now
        text = f"{done:,.0f} of {total:,.0f} {unit} {pace(self._first, (now, done), total)} {note}".strip()
        self._show("progress", ProgressArtifact(progress=percent, description=plain(text)))

    def log(self, message: str) -> None:
        """Log one line; after a number of them only one every few seconds, with the count of those held back."""
        now = time.monotonic()
        if self._lines >= LINES and now - self._said < UPDATE_SECONDS:
            self._held += 1
            self._last.append(message)
            return
        held = f" (and {self._held} lines before it, see the log in the store)" if self._held else ""
        self._logger.info(f"{message}{held}")
        self._lines, self._held, self._said = self._lines + 1, 0, now
        self._last.clear()

    def end(self) -> None:
        """Log the last lines, where they were held back, and show what a server that was away has not heard of."""
        for message in self._last:
            self._logger.info(message)
        self._last.clear()
        self._shown.catch_up()

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Show rows."""
        self._show(key, TableArtifact(table=as_shown(rows)))

    def figure(self, key: str, png: bytes) -> None:
        """Show a picture, carried in the artifact itself; a table or a text may have the same key."""
        data = base64.b64encode(png).decode()
        self._show(f"{key}-picture", ImageArtifact(image_url=f"data:image/png;base64,{data}"))

    def markdown(self, key: str, text: str) -> None:
        """Show a text."""
        self._show(key, MarkdownArtifact(markdown=text))

    def saving(self, seconds: float) -> None:
        """Say nothing: the parent of the stage has said it as a line."""

    def _show(self, key: str, artifact: Artifact) -> None:
        """Create an artifact of this run, or put it in the place of the one that the key had."""
        self._shown.put(artifact_key(self._stage, key), artifact)


def as_shown(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose texts the UI shows as they are: it reads cells, and descriptions, as markdown."""
    return [{name: plain(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]


def pace(first: tuple[float, float], now: tuple[float, float], total: float) -> str:
    """Return the rate since the first look and the time that is left at it; nothing where there is no rate yet.

    Args:
        first: seconds on any clock, and what was done then.
        now: the same, now.
        total: what there is to do.
    """
    seconds, done = now[0] - first[0], now[1] - first[1]
    if seconds <= 0 or done <= 0:
        return ""
    rate = done / seconds
    return f"· {rate:,.3g}/s · {timedelta(seconds=round((total - now[1]) / rate))} left"


def artifact_key(stage: str, key: str) -> str:
    """Return an artifact key of the letters that Prefect accepts."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{key}".lower()).strip("-")
