"""Where a stage tells what it does: the terminal or an orchestrator listens."""

from typing import Any, Protocol


class Report(Protocol):
    """Where a stage tells what it does; the terminal or an orchestrator listens."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Tell how far the stage is."""

    def log(self, message: str) -> None:
        """Say one line."""

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Show rows that share their keys."""

    def figure(self, key: str, png: bytes) -> None:
        """Show a picture."""

    def markdown(self, key: str, text: str) -> None:
        """Show a text."""

    def saving(self, seconds: float) -> None:
        """Tell how long the stage saves what would be lost once it is asked to stop: whoever stops it waits so long."""


class SilentReport:
    """A report that nobody hears: of ranks and workers after the first."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Say nothing."""

    def log(self, message: str) -> None:
        """Say nothing."""

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Say nothing."""

    def figure(self, key: str, png: bytes) -> None:
        """Say nothing."""

    def markdown(self, key: str, text: str) -> None:
        """Say nothing."""

    def saving(self, seconds: float) -> None:
        """Say nothing."""
