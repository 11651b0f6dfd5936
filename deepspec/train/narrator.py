"""What a run tells while it goes: progress at most once a second, the curve at most once a minute, and each look."""

import time
from collections.abc import Mapping
from typing import Any

from deepspec.report import Report
from deepspec.train.accepted import LENGTH
from deepspec.train.loop import Loop
from deepspec.watch.figure import learning_curve
from deepspec.watch.meter import peak_memory

PROGRESS_SECONDS = 1.0
FIGURE_SECONDS = 60.0
FIGURE = "learning-curve"
LOOKS = "held-out"
UNWALKED = (
    "the held-out answers give no accepted length (train.watch): too few of their tokens are known to be the target's "
    "own; looks are held against each other by their loss"
)
"""Answers that were brought, sampled nobody knows how; or too short ones."""


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
            self._report.progress(loop.progress.step, loop.total, "steps", _note(loop))
        if now - self._drawn >= FIGURE_SECONDS:
            self._drawn = now
            self.draw(loop)

    def _tell(self, row: Mapping[str, Any]) -> None:
        if row["split"] == "validation":
            self._report.log(f"step {row['step']}, held out: {look_told(row)}")
            if row["step"] == 0 and LENGTH not in row and "known_greedy" in row:
                self._report.log(UNWALKED)
        if "skipped" in row:
            self._report.log(f"step {row['step']} was skipped: loss or gradients were not finite")
        if "spike" in row:
            self._report.log(
                f"step {row['step']}: gradient norm {row['gradient_norm']:.3g} jumps out of the recent ones"
            )

    def end(self, loop: Loop) -> None:
        """Tell all looks once more, and what they cost."""
        looks = loop.progress.looks()
        if loop.validation is None or not looks:
            return
        self._report.table(LOOKS, [_row_of(look) for look in looks])
        whole, count = loop.validation.seconds, loop.validation.looks
        if count:
            step = loop.meter.training / loop.meter.steps if loop.meter.steps else None
            each = "" if not step else f": each as long as {whole / count / step:.1f} steps"
            walking = f"{loop.validation.walking:.1f} s of it for the accepted length"
            self._report.log(f"looks at held-out samples took {whole:.1f} s, {walking}{each}")

    def draw(self, loop: Loop) -> bytes:
        """Show the learning curve, and return it."""
        png = learning_curve(loop.progress.rows)
        self._report.figure(FIGURE, png)
        return png


def _note(loop: Loop) -> str:
    """Return loss, held-out accepted length, throughput, data wait and memory in one line."""
    loss, looks = loop.progress.last_loss(), loop.progress.looks()
    parts = [] if loss is None else [f"loss {loss:.3f}"]
    parts += [_shown(looks[-1])] if looks else []
    share = loop.meter.utilization
    parts += [f"{loop.meter.tokens_per_second:.0f} tokens/s", f"data wait {loop.data_wait_share:.0%}"]
    parts += [f"memory {peak_memory(loop.task.device) / 1e9:.1f} GB"]
    parts += [] if share is None else [f"MFU {share:.0%}"]
    return "  ".join([*parts, *filter(None, [loop.note()])])


def _shown(look: Mapping[str, Any]) -> str:
    return f"accepted length {look[LENGTH]:.3f}" if LENGTH in look else f"τ {look['tau']:.3f}"


def look_told(look: Mapping[str, Any]) -> str:
    """Return accepted lengths and loss of a look in one line."""
    names = {"_greedy": "greedily", "_sampled": "as the answers were sampled"}
    parts = [
        f"{_length(look, suffix)} {how}{_over(look, suffix)}"
        for suffix, how in names.items()
        if LENGTH + suffix in look
    ]
    lengths = f"accepted length {', '.join(parts)}; " if parts else ""
    return f"{lengths}loss {look['loss']:.4f}"


def _over(look: Mapping[str, Any], suffix: str) -> str:
    """Return of how much of the answers a length is, where that is not all."""
    known = look.get(f"known{suffix}", 1.0)
    return "" if known == 1 else f" over {known:.0%} of the answers' tokens"


def _row_of(look: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table of looks."""
    return {
        "step": look["step"],
        "loss": f"{look['loss']:.4f}",
        "accepted length": _length(look, "") if LENGTH in look else "",
        "greedily": _length(look, "_greedy") if f"{LENGTH}_greedy" in look else "",
        "as sampled": _length(look, "_sampled") if f"{LENGTH}_sampled" in look else "",
    }


def _length(look: Mapping[str, Any], suffix: str) -> str:
    low, high = (look[f"{LENGTH}{suffix}_{end}"] for end in ("low", "high"))
    return f"{look[LENGTH + suffix]:.3f} ({low:.3f} to {high:.3f})"


def silent(_message: str) -> None:
    """Say nothing: the first rank speaks."""
