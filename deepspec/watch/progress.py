"""How far a run is, and what it has seen so far.

Every question about the rows is answered without reading them again: a run of a million steps asks at each.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Look = dict[str, Any]
"""Metric row of a look at the held-out slice."""
Watch = Literal["accepted_length", "loss"]
"""By what looks are held against each other: the longer, or the lower, the better."""


@dataclass(slots=True)
class RunProgress:
    """How far a run is: everything that a resumed one must know beside the weights."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Metric rows; no clock enters them, so that equal runs write equal files. Added by `add`."""
    watch: Watch = "accepted_length"
    """Looks that tell no accepted length (none could be walked, or an earlier release took them) are held against each
    other by their loss, and are worse than any that does."""
    _looks: list[Look] = field(default_factory=list, init=False)
    _best: list[Look] = field(default_factory=list, init=False)
    """Each better than all before it; the last is the best."""
    _top: int = field(default=0, init=False)
    """Number of the best look, the untrained draft's among them; of equals the first."""

    def __post_init__(self) -> None:
        """Take in the rows of the run so far."""
        for row in self.rows:
            self._take(row)

    def add(self, row: dict[str, Any]) -> None:
        """Add a metric row."""
        self.rows.append(row)
        self._take(row)

    def looks(self) -> list[Look]:
        """Return the rows of the looks at the held-out slice."""
        return self._looks

    def best_look(self) -> Look | None:
        """Return the best look, of equals the first; not that at the untrained draft, nor one whose weights could not
        be saved.
        """
        return self._best[-1] if self._best else None

    def last_loss(self) -> float | None:
        """Return the loss of the newest step that was not skipped."""
        rows = (row for row in reversed(self.rows) if row["split"] == "train" and "loss" in row)
        return next((float(row["loss"]) for row in rows), None)

    def looks_without_progress(self) -> int:
        """Return how many looks there were since the best one."""
        return max(len(self._looks) - 1 - self._top, 0)

    def not_kept(self, look: Look) -> None:
        """Note that the weights of the best look could not be saved: the one before it is the best again."""
        look["saved"] = False
        self._best.pop()

    def _take(self, row: dict[str, Any]) -> None:
        if row["split"] != "validation":
            return
        self._looks.append(row)
        if self._badness(row) < self._badness(self._looks[self._top]):
            self._top = len(self._looks) - 1
        best = self.best_look()
        if row["step"] > 0 and row.get("saved", True) and (best is None or self._badness(row) < self._badness(best)):
            self._best.append(row)

    def _badness(self, look: Look) -> tuple[bool, float]:
        """Return what is lower for a better look; a number that is none is worse than any."""
        walked = self.watch == "accepted_length" and "accepted_length" in look
        badness = -float(look["accepted_length"]) if walked else float(look["loss"])
        return not walked, math.inf if math.isnan(badness) else badness
