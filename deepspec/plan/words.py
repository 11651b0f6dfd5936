"""A plan in words: on what, how long, how much, and the cheapest way that fits; then tables of stages and sources."""

from collections.abc import Mapping
from typing import Any

from deepspec.cache.spec import CacheOptions
from deepspec.plan.cost.found import Costs, SourceCost
from deepspec.plan.cost.given import Hardware
from deepspec.plan.cost.sources import DEFAULT_CODEC, TOKENS_ONLY
from deepspec.plan.cost.table import LONGEST_DAYS, duration, size
from deepspec.ranges import NOTHING, Range
from deepspec.target_cache.sizes import BF16_BYTES

CAPTURED = CacheOptions()
_OF_ENGINES = ("states", "engine_version", "engine_quantization", "while_answering", "keep_states")
"""Options of a cache whose states an engine gives."""
_CODEC = {"cache": DEFAULT_CODEC, "online": TOKENS_ONLY, "rolling": TOKENS_ONLY}
"""Source of hidden states -> the codec of the cache that it takes."""


def total(cost: Costs) -> Range:
    """Return the hours of all stages together."""
    result = NOTHING
    for value in cost.hours.values():
        result = result.plus(value)
    return result


def fits(cost: Costs) -> bool:
    """Return whether a machine does it within what anybody waits for."""
    return total(cost).mid <= LONGEST_DAYS * 24


def headline(name: str, cost: Costs, source: str, free: int | None, asked: CacheOptions = CAPTURED) -> tuple[str, ...]:
    """Return what a plan comes to, in words, and the cheapest way that fits with the options that take it.

    Args:
        name: of the hardware.
        cost: of the plan.
        source: where it takes hidden states from.
        free: bytes in the store; None: no limit is known.
        asked: what the plan says of its cache.
    """
    if not fits(cost):
        return (
            f"on {name}: does not fit, it would take over {LONGEST_DAYS} days",
            "see what others take: add --hardware l40s --hardware h100 --hardware h100x8",
        )
    hours = total(cost)
    told = f"about {duration(hours.mid)} ({duration(hours.low)} to {duration(hours.high)})"
    return (
        f"on {name}: {told}, {usd(cost.money.mid)}, {size(cost.store_bytes.mid)} in the store",
        *_spread(cost),
        *_cheapest(cost, source, free, asked),
    )


def _spread(cost: Costs) -> tuple[str, ...]:
    """Return over how many devices the target has to lie, where one does not hold its weights."""
    if cost.devices_for_target == 1:
        return ()
    count = "is 1" if cost.devices == 1 else f"are {cost.devices}"
    there = "" if cost.devices >= cost.devices_for_target else f", and there {count}"
    how = "in bf16" if cost.weights_bits == 8 * BF16_BYTES else f"at {cost.weights_bits:.1f} bits each"
    return (
        f"the target's weights take {size(cost.weights_bytes)} {how}, more than one device has: they lie over "
        f"{cost.devices_for_target} or more (--device spread; an engine has its own option){there}",
    )


def while_answering(costs: tuple[Costs, Costs], room: float, kept: float, share: float) -> tuple[str, ...]:
    """Return what it saves and costs that states come with the answers.

    Args:
        costs: of the plan, and of the same in two passes.
        room: that states take in an engine beside keys and values, as a share of those.
        kept: bytes of all states, as an engine gives them.
        share: of them that are kept.
    """
    cache, answers = ([duration(cost.hours[stage].mid) for cost in costs] for stage in ("cache", "regenerate"))
    high = duration(costs[0].hours["regenerate"].high)
    rest = "" if share == 1 else f", of which {share:.0%} fit (cache.keep_states); the others are asked for again"
    return (
        f"states come with the answers: the cache takes {cache[0]} instead of {cache[1]}, its writing, and answers "
        f"{answers[0]} instead of {answers[1]} (assumed; at most {high}),",
        f"since an engine speculates one token in this mode; states take {room:.0%} of room beside keys and values; "
        f"scratch holds them until they are encoded: {size(kept)}{rest}",
    )


def _cheapest(cost: Costs, source: str, free: int | None, asked: CacheOptions) -> tuple[str, ...]:
    room = {name: each for name, each in cost.sources.items() if free is None or each.stored.mid <= free}
    if not room:
        return ("no source of hidden states fits the store: take fewer samples (--set prepare.max_samples=N)",)
    best = min(room, key=lambda name: _worth(room[name]))
    if source in room and _worth(room[best]) == _worth(room[source]):
        return (f"this is the cheapest way that fits: train.source={source}",)
    return (
        f"cheapest way that fits: {' with '.join(_settings(best, asked))}, instead of train.source={source};",
        "cache and training take",
        f"    {best}: {_told(room[best])}",
        f"    {source}: {_told(cost.sources[source])}",
        f"    the same command with {' '.join(f'--set {each}' for each in _settings(best, asked))}",
    )


def _settings(source: str, asked: CacheOptions) -> list[str]:
    """Return the settings that take a source of hidden states: a source alone is refused with another's codec.

    A cache of tokens only asks no engine for states, so what the plan says of one is taken back.
    """
    told = [f"train.source={source}", f"cache.codec={_CODEC[source]}"]
    if _CODEC[source] != TOKENS_ONLY:
        return told
    plain = {name: getattr(CAPTURED, name) for name in _OF_ENGINES if getattr(asked, name) != getattr(CAPTURED, name)}
    return told + [f"cache.{name}={_as_set(value)}" for name, value in plain.items()]


def _as_set(value: str | bool | None) -> str:
    return "null" if value is None else str(value).lower()


def _worth(cost: SourceCost) -> tuple[float, float]:
    """Return what is compared: whole dollars, then hours."""
    return round(cost.money.mid), _hours(cost).mid


def _hours(cost: SourceCost) -> Range:
    return cost.cache_hours.plus(cost.train_hours)


def _told(cost: SourceCost) -> str:
    return f"{duration(_hours(cost).mid)}, {usd(cost.money.mid)}, {size(cost.stored.mid)}"


def stage_rows(cost: Costs, hardware: Hardware) -> list[dict[str, Any]]:
    """Return time and money of every stage, a row each."""
    hourly = hardware.device_hour * hardware.devices
    rows = [_stage_row(stage, value, value.scaled(hourly)) for stage, value in cost.hours.items()]
    return [*rows, _stage_row("all, with storage and requests", total(cost), cost.money)]


def source_rows(cost: Costs) -> list[dict[str, Any]]:
    """Return the sources of hidden states side by side, cache and training together."""
    return [
        {
            "hidden states": name,
            "stored": size(each.stored.mid),
            "read": size(each.egress.mid),
            "local disk": size(each.local.mid),
            "time": duration(_hours(each).mid),
            "money": usd(each.money.mid),
        }
        for name, each in cost.sources.items()
    ]


def cache_rows(cost: Costs) -> list[dict[str, Any]]:
    """Return the bytes of a target cache by codec, with their interval."""
    return [
        {"target cache": name, "bytes": size(value.mid), "from": size(value.low), "to": size(value.high)}
        for name, value in cost.cache_bytes.items()
    ]


def machine_rows(costs: Mapping[str, Costs]) -> list[dict[str, Any]]:
    """Return what a plan comes to on several machines, a row each."""
    return [
        {
            "machine": name,
            "time": duration(total(cost).mid) if fits(cost) else "does not fit",
            "money": usd(cost.money.mid) if fits(cost) else "",
            "stored": size(cost.store_bytes.mid),
            "cheapest source": min(cost.sources, key=lambda each: _worth(cost.sources[each])) if fits(cost) else "",
        }
        for name, cost in costs.items()
    ]


def usd(value: float) -> str:
    """Return money as people say it."""
    return "0 USD" if value < 0.005 else f"{value:,.2f} USD" if value < 10 else f"{value:,.0f} USD"


def _stage_row(stage: str, hours: Range, money: Range) -> dict[str, Any]:
    low, high = duration(hours.low), duration(hours.high)
    interval = "" if low == high else f"{low} to {high}"
    return {"stage": stage, "time": duration(hours.mid), "between": interval, "money": usd(money.mid)}
