"""How pictures look: one size of axes, one way to PNG bytes; and the picture that several pages share.

The same numbers give the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deepspec.formats.scores import Acceptance

DPI = 130


def drawing(columns: int, width: float = 4.5, height: float = 3.4) -> tuple[Figure, Any]:
    """Return a figure and its axes side by side: one, or an array of them.

    Args:
        columns: how many.
        width: of each, in inches.
        height: in inches.
    """
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def acceptance_by_position(curves: Mapping[str, Acceptance]) -> bytes:
    """Return a plot of cumulative (left) and conditional (right) acceptance by position, one curve a name."""
    figure, (left, right) = drawing(2)
    for axis, name in ((left, "cumulative"), (right, "conditional")):
        for label, found in curves.items():
            _curve(axis, label, getattr(found, name))
        axis.set(title=f"{name} acceptance", xlabel="position in the proposal", ylim=(0, 1))
        axis.grid(alpha=0.3)
    left.set_ylabel("share accepted")
    if curves:
        left.legend(fontsize=8)
    return png(figure)


def _curve(axis: Any, label: str, points: Sequence[Any]) -> None:
    known = [(k, point) for k, point in enumerate(points, 1) if point.value is not None]
    places, values = [k for k, _ in known], [point.value for _, point in known]
    axis.plot(places, values, "o-", label=label)
    axis.fill_between(places, [p.low or 0 for _, p in known], [p.high or 0 for _, p in known], alpha=0.15)
