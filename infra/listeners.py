"""Who hears what a stage says: the terminal where one is attached, and any number of reports at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from deepspec.report import Report
from infra.terminal import Bar, Bars, Styled, bars

_BARS: ContextVar[Bars | None] = ContextVar("bars", default=None)


class Listeners:
    """A report that passes everything on to several."""

    def __init__(self, reports: Sequence[Report]) -> None:
        """Pass everything on to these."""
        self._reports = reports

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Pass progress on."""
        for report in self._reports:
            report.progress(done, total, unit, note)

    def log(self, message: str) -> None:
        """Pass a line on."""
        for report in self._reports:
            report.log(message)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Pass rows on."""
        for report in self._reports:
            report.table(key, rows)

    def figure(self, key: str, png: bytes) -> None:
        """Pass a picture on."""
        for report in self._reports:
            report.figure(key, png)

    def markdown(self, key: str, text: str) -> None:
        """Pass a text on."""
        for report in self._reports:
            report.markdown(key, text)

    def saving(self, seconds: float) -> None:
        """Pass on how long saving takes."""
        for report in self._reports:
            report.saving(seconds)


class TerminalReport:
    """A progress bar and a few lines for one stage."""

    def __init__(self, name: str, bars: Bars) -> None:
        """Draw into a running progress display."""
        self._name = name
        self._bars = bars
        self._bar: Bar | None = None

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Move the bar of the stage."""
        if self._bar is None:
            self._bar = self._bars.add(self._name, total, unit, note)
        self._bars.move(self._bar, done, total, unit, note)

    def log(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.say(Styled(self._name, "dim"), f" {message}")

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Say nothing: tables are in the UI and in the artifact, and some come again and again."""

    def figure(self, key: str, png: bytes) -> None:
        """Say nothing: a terminal shows no pictures."""

    def markdown(self, key: str, text: str) -> None:
        """Say nothing: the text is in the store and in the UI."""

    def saving(self, seconds: float) -> None:
        """Say nothing: the parent of the stage has said it as a line."""


@contextmanager
def attached() -> Iterator[None]:
    """Show the progress of stages on the terminal while the block runs."""
    with bars() as drawn:
        token = _BARS.set(drawn)
        try:
            yield
        finally:
            _BARS.reset(token)


def terminal(name: str) -> list[Report]:
    """Return a report to the attached terminal, or none where there is none."""
    drawn = _BARS.get()
    return [] if drawn is None else [TerminalReport(name, drawn)]
