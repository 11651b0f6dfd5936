"""Pictures of calibration, as PNG bytes."""

from deepspec.formats.scores import CalibrationScore
from deepspec.page.figure import drawing, png


def reliability(score: CalibrationScore) -> bytes:
    """Return reliability diagrams before (left) and after (right) the fitted temperatures, one curve a position."""
    figure, axes = drawing(2)
    for axis, name, rows in zip(axes, ("before", "after"), (score.before, score.after), strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        for row in rows:
            bins = [each for each in row.bins if each.count >= 5]
            axis.plot([b.predicted for b in bins], [b.observed for b in bins], "o-", markersize=3, label=row.position)
        axis.set(title=f"{name} calibration", xlabel="confidence through the position", xlim=(0, 1), ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share accepted")
    axes[0].legend(title="position", fontsize=8)
    return png(figure)
