"""A report that remembers what it hears."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """Keeps lines in order, and tables, pictures and texts by key."""

    lines: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)
    """What was done, of how much."""
    seconds: float = 0.0
    """That saving takes."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        assert 0 <= done <= total
        self.steps.append((done, total))

    def log(self, message: str) -> None:
        self.lines.append(message)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        self.tables[key] = rows

    def figure(self, key: str, png: bytes) -> None:
        self.figures[key] = png

    def markdown(self, key: str, text: str) -> None:
        self.texts[key] = text

    def saving(self, seconds: float) -> None:
        self.seconds = seconds
