"""The learning curve as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from deepspec.page.figure import drawing

LENGTHS = {"accepted_length_greedy": "greedily", "accepted_length_sampled": "as sampled"}
"""Of a look's row -> how it is called; both with `_low` and `_high`."""
OF_BLOCKS = {"tau": "random blocks, by chances", "tau_greedy": "random blocks, greedily"}
"""The same of accepted lengths that are not walked: blocks at random places, see docs/training.md."""
_SMOOTH = 0.9


def learning_curve(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the picture of a run's metric rows as PNG: the same rows give the same bytes."""
    buffer = io.BytesIO()
    curves(rows).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return losses of training and held-out samples, and accepted lengths with their intervals, by step.

    Args:
        rows: metric rows of a run; where none is of held-out samples, there are no lengths.
    """
    train = [row for row in rows if row["split"] == "train" and "loss" in row]
    held_out = [row for row in rows if row["split"] == "validation"]
    figure, _ = drawing(2 if held_out else 1, height=3.6)
    losses, *lengths = figure.axes
    losses.plot([row["step"] for row in train], _smooth([row["loss"] for row in train]), label="training, smoothed")
    if held_out:
        losses.plot([row["step"] for row in held_out], [row["loss"] for row in held_out], "o-", ms=3, label="held out")
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter("{x:g}")
    losses.legend()
    for axes in lengths:
        _draw_lengths(axes, held_out)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def _draw_lengths(axes: Any, held_out: Sequence[Mapping[str, Any]]) -> None:
    """Draw what decoding would give, as bands; thin, what a block at any place gives by itself."""
    for name, label in LENGTHS.items():
        rows = [row for row in held_out if name in row]
        if rows:
            steps = [row["step"] for row in rows]
            axes.plot(steps, [row[name] for row in rows], "o-", ms=3, label=label)
            axes.fill_between(
                steps, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows], alpha=0.2
            )
    for name, label in OF_BLOCKS.items():
        rows = [row for row in held_out if name in row]
        if rows:
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], ":", lw=1, label=label)
    axes.set(xlabel="step", ylabel="accepted length, bonus token included")
    axes.legend()


def _smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean that forgets."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else _SMOOTH * smoothed[-1] + (1 - _SMOOTH) * value)
    return smoothed
