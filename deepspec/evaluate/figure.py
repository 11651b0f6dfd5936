"""Pictures of scores, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deepspec.formats.scores import Acceptance, CalibrationScore


def acceptance_by_position(curves: Mapping[str, Acceptance]) -> bytes:
    """Return a plot of cumulative (left) and conditional (right) acceptance by position, one curve a name."""
    figure, (left, right) = _figure(2)
    for axis, name in ((left, "cumulative"), (right, "conditional")):
        for label, found in curves.items():
            _curve(axis, label, getattr(found, name))
        axis.set(title=f"{name} acceptance", xlabel="position in the proposal", ylim=(0, 1))
        axis.grid(alpha=0.3)
    left.set_ylabel("share accepted")
    if curves:
        left.legend(fontsize=8)
    return _png(figure)


def reliability(score: CalibrationScore) -> bytes:
    """Return reliability diagrams before (left) and after (right) the fitted temperatures, one curve a position."""
    figure, axes = _figure(2)
    for axis, name, rows in zip(axes, ("before", "after"), (score.before, score.after), strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for row in rows:
            bins = [each for each in row.bins if each.count >= 5]
            axis.plot([b.predicted for b in bins], [b.observed for b in bins], "o-", markersize=3, label=row.position)
        axis.set(title=f"{name} calibration", xlabel="confidence through the position", xlim=(0, 1), ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share accepted")
    axes[0].legend(title="position", fontsize=8)
    return _png(figure)


def _curve(axis: Any, label: str, points: Sequence[Any]) -> None:
    known = [(k, point) for k, point in enumerate(points, 1) if point.value is not None]
    places, values = [k for k, _ in known], [point.value for _, point in known]
    axis.plot(places, values, "o-", label=label)
    axis.fill_between(places, [p.low or 0 for _, p in known], [p.high or 0 for _, p in known], alpha=0.15)


def _figure(columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
