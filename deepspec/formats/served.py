"""What an engine that serves a draft gave at several loads, and what follows from it: a typed part of speed.json."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from deepspec.formats.engine_speed import EngineSpeed, engine_name
from deepspec.formats.levels import Level
from deepspec.formats.numbers import Frozen, Interval, overlap, with_interval
from deepspec.formats.serve_options import ServeOptions


class BreakEven(Frozen):
    """Requests at once beyond which the draft no longer pays, by interpolation in the logarithm of the load."""

    context: int | None = None
    value: float | None
    """0: it pays at no load that was measured; None: it still pays at the highest."""
    low: float | None
    high: float | None

    def told(self, lowest: int, highest: int) -> str:
        """Return it in words, given the loads that were measured."""

        def words(load: float | None) -> str:
            return f"above {highest}" if load is None else f"below {lowest}" if load == 0 else f"{load:.1f}"

        measured = f"of {lowest} to {highest} requests at once"
        where = "" if self.context is None else f", prompts of {self.context} tokens"
        if self.value is None:
            pays = f"at every load {measured}"
        else:
            pays = f"up to {words(self.value)} requests at once" if self.value else f"at no load {measured}"
        return f"{pays} (95 %: {words(self.low)} to {words(self.high)}{where})"


class ProposedLength(Frozen):
    """How many tokens to propose at a load, by the costs measured there."""

    load: int
    tokens: int
    """0: serve without the draft."""
    speedup: float
    """To expect of it."""


class Tried(Frozen):
    """The draft served with other settings, at one load."""

    load: int
    max_tokens: int
    """Proposed per round, at most."""
    least: float
    """Proposals are cut before a token less likely than this (llama.cpp's p_min)."""
    tokens_per_second: Interval
    tokens_per_round: Interval | None


class Change(Frozen):
    """One level, in an earlier measurement and in this one."""

    load: float
    context: int | None
    before: Interval
    now: Interval
    verdict: Literal["faster", "slower", "no difference"]


class UnderLoad(Frozen):
    """An engine with and without the draft, at several loads."""

    version: Literal[1] = 1
    engine: Annotated[str, AfterValidator(lambda with_interval: engine_name(with_interval))]
    plain_engine: Annotated[
        str | None, AfterValidator(lambda with_interval: with_interval and engine_name(with_interval))
    ]
    """None: no engine served the target alone."""
    hardware: str
    """Of the machine that asked; engines elsewhere are named by what they tell."""
    started: bool
    """Whether the run started the engines itself, on that machine."""
    slots: int
    """Tokens that the draft proposes per round, at most."""
    options: ServeOptions
    check: EngineSpeed | None = None
    """What the engine accepts of prompts that were decoded here; None: there were none, or it does not tell."""
    levels: tuple[Level, ...]
    break_even: tuple[BreakEven, ...] = ()
    proposals: tuple[ProposedLength, ...] = ()
    best: ProposedLength | None = None
    """One number of tokens for all loads that were measured; its load is the highest of them."""
    tried: tuple[Tried, ...] = ()
    before: str | None = None
    """The release with whose measurement this one is compared."""
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    """What must be seen first."""

    @property
    def loads(self) -> tuple[int, ...]:
        """Return the numbers of requests at once at which both sides were measured."""
        return tuple(sorted({int(each.load) for each in self.levels if each.kind == "closed" and each.speedup}))

    def break_even_text(self) -> str:
        """Return up to which load the draft pays, in a sentence."""
        if not self.break_even or not self.loads:
            return "No break-even load is told: the engine was not measured with and without the draft."
        lowest, highest = self.loads[0], self.loads[-1]
        return f"The draft pays {'; '.join(each.told(lowest, highest) for each in self.break_even)}."

    def counts(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"break_even": self.break_even_text(), "warnings": list(self.warnings)}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each level."""
        rows = [each.row() for each in self.levels]
        empty = {name for row in rows for name in row} - {name for row in rows for name, value in row.items() if value}
        return [{name: value for name, value in row.items() if name not in empty} for row in rows]

    def proposal_rows(self) -> list[dict[str, Any]]:
        """Return a row for each load: how many tokens to propose."""
        return [
            {
                "requests at once": each.load,
                "propose": each.tokens or "nothing",
                "expected speed-up": f"{each.speedup:.2f}",
            }
            for each in self.proposals
        ]

    def tried_rows(self) -> list[dict[str, Any]]:
        """Return a row for each setting that was tried."""
        return [
            {
                "requests at once": each.load,
                "n_max": each.max_tokens,
                "p_min": f"{each.least:g}",
                "tokens/s": with_interval(each.tokens_per_second, 1),
                "tokens per round": "n/a" if each.tokens_per_round is None else with_interval(each.tokens_per_round, 2),
            }
            for each in self.tried
        ]

    def change_rows(self) -> list[dict[str, Any]]:
        """Return a row for each level that was measured before, too."""
        return [
            {
                "requests at once": f"{each.load:g}",
                **({"context": each.context} if each.context else {}),
                "tokens/s before": with_interval(each.before, 1),
                "now": with_interval(each.now, 1),
                "verdict": each.verdict,
            }
            for each in self.changes
        ]

    def best_setting(self) -> tuple[int, float] | None:
        """Return tokens to propose and the least chance of one, over all loads; None where the draft pays at none.

        What was tried goes before what is worked out: the largest product of speeds, over the settings of the
        measurement itself and those tried.
        """
        if self.best is None or not self.best.tokens:
            return None
        speeds: dict[tuple[int, float], list[float]] = {}
        for each in self.tried:
            speeds.setdefault((each.max_tokens, each.least), []).append(each.tokens_per_second.value or 0.0)
        own = [each.drafting.tokens_per_second.value or 0.0 for each in _closed(self.levels) if each.drafting]
        whole = {place: found for place, found in speeds.items() if len(found) == len(own)}
        if not whole:
            return self.best.tokens, 0.0
        return max({(self.slots, 0.0): own, **whole}.items(), key=lambda pair: prod(pair[1]))[0]

    def schedule(self) -> list[list[int]]:
        """Return what vLLM takes as tokens per batch size: first and last size, tokens; the last size is open."""
        merged: list[list[int]] = []
        for each in self.proposals:
            first = merged[-1][1] + 1 if merged else 1
            if merged and merged[-1][2] == max(each.tokens, 1):
                merged[-1][1] = each.load
            else:
                merged.append([first, each.load, max(each.tokens, 1)])
        return merged


def incomparable(before: UnderLoad, now: UnderLoad) -> str:
    """Return why two measurements tell nothing of each other; empty where they do."""
    if before.hardware != now.hardware:
        return f"it was measured on {before.hardware}"
    if before.engine != now.engine:
        return f"it was measured with {before.engine}"
    alike = ("max_tokens", "ends", "prompts", "seed")
    other = [name for name in alike if getattr(before.options, name) != getattr(now.options, name)]
    return f"it was measured with other {' and '.join(other)}" if other else ""


def changes(before: UnderLoad, now: UnderLoad) -> tuple[Change, ...]:
    """Return the levels of a closed loop that both measured with the draft; faster or slower: intervals apart."""
    earlier = {(each.load, each.context): each.drafting for each in _closed(before.levels)}
    pairs = [(each, earlier.get((each.load, each.context))) for each in _closed(now.levels)]
    return tuple(
        _change(level, old.tokens_per_second, level.drafting.tokens_per_second)
        for level, old in pairs
        if old is not None and level.drafting is not None
    )


def _change(level: Level, before: Interval, now: Interval) -> Change:
    faster = (now.value or 0) > (before.value or 0)
    verdict: Literal["faster", "slower", "no difference"] = "faster" if faster else "slower"
    if overlap(before, now):
        verdict = "no difference"
    return Change(load=level.load, context=level.context, before=before, now=now, verdict=verdict)


def _closed(levels: Sequence[Level]) -> list[Level]:
    return [each for each in levels if each.kind == "closed" and each.drafting is not None]
