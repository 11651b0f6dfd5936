"""Pictures of load, as PNG bytes."""

from typing import Any

from deepspec.formats.levels import Level, Side
from deepspec.formats.numbers import Interval
from deepspec.formats.served import UnderLoad
from deepspec.page.figure import drawing, png


def by_load(found: UnderLoad) -> bytes:
    """Return a plot of tokens per second with and without the draft, and of the speed-up, by requests at once."""
    figure, (speed, gain) = drawing(2, 4.2)
    loads = sorted({int(each.load) for each in found.levels if each.kind == "closed"})
    for context in dict.fromkeys(each.context for each in found.levels):
        closed = [each for each in found.levels if each.kind == "closed" and each.context == context]
        where = "" if context is None else f", {context} tokens"
        _line(speed, [(each, _speed(each.drafting)) for each in closed], f"with the draft{where}", "o-")
        _line(speed, [(each, _speed(each.plain)) for each in closed], f"without{where}", "o--")
        _line(gain, [(each, each.speedup) for each in closed], f"speed-up{where}", "o-")
    speed.set(ylabel="tokens per second", ylim=(0, None))
    gain.set(ylabel="speed-up", ylim=(0, None))
    gain.axhline(1, color="grey", linewidth=0.8)
    for axis in (speed, gain):
        axis.set_xscale("log", base=2)
        axis.set_xticks(loads, [str(each) for each in loads])
        axis.set_xlabel("requests at once")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return png(figure)


def _line(axis: Any, points: list[tuple[Level, Interval | None]], label: str, style: str) -> None:
    """Draw numbers with their intervals over the load."""
    known = [(level.load, each) for level, each in points if each is not None and each.value is not None]
    if not known:
        return
    values = [each.value or 0.0 for _, each in known]
    below = [max((each.value or 0) - (each.low if each.low is not None else each.value or 0), 0) for _, each in known]
    above = [max((each.high if each.high is not None else each.value or 0) - (each.value or 0), 0) for _, each in known]
    axis.errorbar([load for load, _ in known], values, yerr=[below, above], fmt=style, label=label, capsize=3)


def _speed(side: Side | None) -> Interval | None:
    return None if side is None else side.tokens_per_second
