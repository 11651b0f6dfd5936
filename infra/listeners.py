"""Who hears what a stage says: the terminal where one is attached, and any number of reports at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from deepspec.report import Report

_PROGRESS: ContextVar[Progress | None] = ContextVar("progress", default=None)


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


class TerminalReport:
    """A progress bar and a few lines for one stage."""

    def __init__(self, name: str, progress: Progress) -> None:
        """Draw into a running progress display."""
        self._name = name
        self._progress = progress
        self._bar: TaskID | None = None

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Move the bar of the stage."""
        if self._bar is None:
            self._bar = self._progress.add_task(self._name, total=total, unit=unit, note=note)
        self._progress.update(self._bar, completed=done, total=total, unit=unit, note=note)

    def log(self, message: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(f"[dim]{self._name}[/dim] {message}", highlight=False)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Say nothing: tables are in the UI and in the artifact, and some come again and again."""

    def figure(self, key: str, png: bytes) -> None:
        """Say nothing: a terminal shows no pictures."""

    def markdown(self, key: str, text: str) -> None:
        """Say nothing: the text is in the store and in the UI."""


def rich_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return rows that share their keys as a table for the terminal."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(str(name), overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


@contextmanager
def attached(console: Console) -> Iterator[None]:
    """Show the progress of stages on a console while the block runs."""
    columns = (
        TextColumn("[bold]{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        token = _PROGRESS.set(progress)
        try:
            yield
        finally:
            _PROGRESS.reset(token)


def terminal(name: str) -> list[Report]:
    """Return a report to the attached terminal, or none where there is none."""
    progress = _PROGRESS.get()
    return [] if progress is None else [TerminalReport(name, progress)]
