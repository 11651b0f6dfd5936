"""A report that nobody reads."""

from typing import Any


class Silence:
    """Takes everything and keeps it."""

    def __init__(self) -> None:
        """Start with nothing told."""
        self.told: list[tuple[str, Any]] = []

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Keep it."""
        self.told.append(("progress", (done, total, unit, note)))

    def log(self, message: str) -> None:
        """Keep it."""
        self.told.append(("log", message))

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep it."""
        self.told.append((key, rows))

    def figure(self, key: str, png: bytes) -> None:
        """Keep it."""
        self.told.append((key, png))

    def markdown(self, key: str, text: str) -> None:
        """Keep it."""
        self.told.append((key, text))
