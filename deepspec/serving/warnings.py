"""What must be seen first of an engine under load."""

from collections.abc import Sequence
from itertools import groupby

from deepspec.formats.levels import Level, Side
from deepspec.formats.numbers import Interval, with_interval
from deepspec.formats.served import UnderLoad


def warnings(found: UnderLoad, kind: str, *, decoded_here: bool, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what is wrong, the worst first.

    Args:
        found: all but the warnings.
        kind: of the engine.
        decoded_here: whether the engine was asked prompts that were decoded here.
        without: options that the draft wants, and the engine was started without.
    """
    return (
        *(
            f"{found.engine} was started without {option}, which the draft wants and no file of it says: start it as "
            "the card does."
            for option in without
        ),
        *_of_draft(found, kind, decoded_here),
        *_of_acceptance(found),
        *_of_levels(found),
        *_of_prefixes(found),
    )


def _of_draft(found: UnderLoad, kind: str, decoded_here: bool) -> list[str]:
    told = [found.check.warning] if found.check is not None and found.check.warning else []
    silent = not any(each.accepted for each in found.levels) and found.check is None
    if silent and kind == "unknown":
        told.append(f"{found.engine} tells nothing about drafts: whether it uses this one is not known.")
    elif silent:
        told.append(
            f"{found.engine} drafted nothing: it ignores the draft. Start it with the draft, and look at its log."
        )
    elif kind == "SGLang" and found.check is None and decoded_here:
        told.append(f"{found.engine} tells a mean of a window only: what it accepts is not held against ours.")
    elif not decoded_here:
        told.append("What the engine accepts is held against nothing: no prompt of the evaluation was asked.")
    return told


def _of_acceptance(found: UnderLoad) -> list[str]:
    """Greedy rounds over the same prompts are the same rounds, whatever else the engine does meanwhile."""
    closed = [each for each in found.levels if each.kind == "closed" and each.accepted is not None]
    fallen = []
    for _, levels in groupby(closed, lambda each: each.context):
        lightest, *others = levels
        fallen += [(lightest, each) for each in others if _falls(lightest, each)]
    if not fallen:
        return []
    lightest, worst = min(fallen, key=lambda each: _rounds(each[1]).value or 0.0)
    least, most = (with_interval(_rounds(each)) for each in (worst, lightest))
    return [
        f"What {found.engine} accepts falls with its load: {least} tokens per round at {_named(worst)}, "
        f"{most} at {_named(lightest)}. Greedy rounds over the same prompts do not hang on it: "
        "the engine is to blame. Serve fewer at once, or another version of it."
    ]


def _falls(lightest: Level, other: Level) -> bool:
    before, now = _rounds(lightest), _rounds(other)
    return before.low is not None and now.high is not None and now.high < before.low


def _rounds(level: Level) -> Interval:
    return Interval(value=None, low=None, high=None) if level.accepted is None else level.accepted.tokens_per_round


def _of_levels(found: UnderLoad) -> list[str]:
    told = [f"At {_named(each)}: {note}." for each in found.levels for note in each.notes]
    speeds = [each.speedup.value for each in found.levels if each.speedup and each.speedup.value]
    if speeds and max(speeds) < 1:
        told.append("At no load that was measured is the engine faster with the draft.")
    return told


def _of_prefixes(found: UnderLoad) -> list[str]:
    sides = [side for each in found.levels for side in (each.drafting, each.plain) if side is not None]
    cached = sum(side.cached_tokens or 0 for side in sides)
    if cached:
        return [
            f"Prefix caching was on: {cached} tokens of prompts were not read, times to the first token are better."
        ]
    return ["Whether prefixes were cached is not known: the engine does not tell."] if _unknown(sides) else []


def _unknown(sides: list[Side]) -> bool:
    return any(side.cached_tokens is None for side in sides)


def _named(level: Level) -> str:
    where = f", prompts of {level.context} tokens" if level.context else ""
    return f"{level.load:g} {'requests at once' if level.kind == 'closed' else 'requests per second'}{where}"
