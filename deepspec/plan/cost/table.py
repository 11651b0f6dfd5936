"""An estimate as people read it: a table, bytes and times in words."""

from typing import Any

from deepspec.plan.cost.found import Costs, GreedyCost
from deepspec.ranges import Range

LONGEST_DAYS = 60
"""What takes longer does not fit a machine, whatever the number is."""


def rows(result: Costs) -> list[dict[str, Any]]:
    """Return the estimate as a table for people."""
    table = [_row("tokens", result.tokens, _count)]
    table += [_row(f"target cache, {name}", value, size) for name, value in result.cache_bytes.items()]
    table += [_row("files of the target cache", result.files, _count)]
    table.append(_row("store, all artifacts", result.store_bytes, size))
    table += [_row(f"{stage}: time", value, duration) for stage, value in result.hours.items()]
    table += [_row("PUT requests", result.puts, _count), _row("GET requests", result.gets, _count)]
    table.append(_row("money (USD)", result.money, _money_text))
    table += [] if result.greedy is None else _greedy_rows(result.greedy)
    for name, cost in result.sources.items():
        table.append(_row(f"source {name}: stored", cost.stored, size))
        table.append(_row(f"source {name}: read from the store", cost.egress, size))
        table.append(_row(f"source {name}: local disk", cost.local, size))
        table.append(_row(f"source {name}: time", cost.cache_hours.plus(cost.train_hours), duration))
        table.append(_row(f"source {name}: USD", cost.money, _money_text))
    return table


def _greedy_rows(greedy: GreedyCost) -> list[dict[str, Any]]:
    time = greedy.engine_hours.plus(greedy.cost.cache_hours).plus(greedy.cost.train_hours)
    return [
        _row("greedy held-out answers: prompts asked once more", Range.around(greedy.prompts), _count),
        _row("greedy held-out answers: stored", greedy.cost.stored, size),
        _row("greedy held-out answers: time", time, duration),
    ]


def size(value: float) -> str:
    """Return bytes in the largest decimal unit that keeps a digit before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def several(count: int, what: str) -> str:
    """Return a number with what is counted, which is one or many: `1 prompt`, `1,000 prompts`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(hours: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 41 h, 5 days; what is longer than two months is only that."""
    if hours > LONGEST_DAYS * 24:
        return f"over {LONGEST_DAYS} days"
    for unit, length, least in (("days", 24.0, 3), ("h", 1.0, 2), ("min", 1 / 60, 2)):
        if hours >= least * length:
            value = hours / length
            return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{hours * 3600:.0f} s"


def _row(what: str, value: Range, text: Any) -> dict[str, Any]:
    return {"what": what, "estimate": text(value.mid), "low": text(value.low), "high": text(value.high)}


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _money_text(value: float) -> str:
    return f"{value:,.2f}"
