"""What a run tells while it goes: progress at most once a second, the curve at most once a minute."""

import time
from collections.abc import Mapping
from typing import Any

from deepspec.report import Report
from deepspec.train.figure import learning_curve
from deepspec.train.loop import Loop
from deepspec.train.meter import peak_memory

PROGRESS_SECONDS = 1.0
FIGURE_SECONDS = 60.0
FIGURE = "learning-curve"


class Narrator:
    """Reports on a loop; only the first rank has one that is heard."""

    def __init__(self, report: Report) -> None:
        """Nothing has been told yet."""
        self._report = report
        self._told = 0.0
        self._drawn = time.monotonic()
        self._rows = 0

    def begin(self, loop: Loop) -> None:
        """Begin behind the rows that a resumed run brings along."""
        self._rows = len(loop.progress.rows)

    def __call__(self, loop: Loop) -> None:
        """Tell about the rows that are new."""
        now = time.monotonic()
        rows, self._rows = loop.progress.rows[self._rows :], len(loop.progress.rows)
        for row in rows:
            self._tell(row)
        if now - self._told >= PROGRESS_SECONDS or loop.finished:
            self._told = now
            self._report.progress(loop.progress.step, loop.total, "steps", note(loop))
        if now - self._drawn >= FIGURE_SECONDS:
            self._drawn = now
            self.draw(loop)

    def _tell(self, row: Mapping[str, Any]) -> None:
        if "skipped" in row:
            self._report.log(f"step {row['step']} was skipped: loss or gradients were not finite")
        if "spike" in row:
            self._report.log(
                f"step {row['step']}: gradient norm {row['gradient_norm']:.3g} jumps out of the recent ones"
            )

    def draw(self, loop: Loop) -> bytes:
        """Show the learning curve, and return it."""
        png = learning_curve(loop.progress.rows)
        self._report.figure(FIGURE, png)
        return png


def note(loop: Loop) -> str:
    """Return loss, held-out accepted length, throughput, data wait and memory in one line."""
    loss, looks = loop.progress.last_loss(), loop.progress.looks()
    parts = [] if loss is None else [f"loss {loss:.3f}"]
    parts += [f"τ {looks[-1]['tau']:.3f}"] if looks else []
    share = loop.meter.utilization
    parts += [f"{loop.meter.tokens_per_second:.0f} tokens/s", f"data wait {loop.data_wait_share:.0%}"]
    parts += [f"memory {peak_memory(loop.task.device) / 1e9:.1f} GB"]
    return "  ".join(parts if share is None else [*parts, f"MFU {share:.0%}"])
