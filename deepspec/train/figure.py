"""The learning curve as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_SMOOTH = 0.9


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG: losses of training and held-out samples, and the expected accepted length, by step.

    The same rows give the same bytes.

    Args:
        rows: metric rows of a run.
    """
    figure = Figure(figsize=(9, 3.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, lengths = figure.subplots(1, 2)
    train = [row for row in rows if row["split"] == "train" and "loss" in row]
    held_out = [row for row in rows if row["split"] == "validation"]
    losses.plot([row["step"] for row in train], _smooth([row["loss"] for row in train]), label="training, smoothed")
    losses.plot([row["step"] for row in held_out], [row["loss"] for row in held_out], "o-", ms=3, label="held out")
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.legend()
    for name in ("tau", "tau_greedy"):
        points = [(row["step"], row[name]) for row in held_out if name in row]
        lengths.plot([step for step, _ in points], [tau for _, tau in points], "o-", ms=3, label=name)
    lengths.set(xlabel="step", ylabel="expected accepted length, bonus token included")
    lengths.legend()
    for axes in (losses, lengths):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean that forgets."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else _SMOOTH * smoothed[-1] + (1 - _SMOOTH) * value)
    return smoothed
