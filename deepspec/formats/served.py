"""What engines that serve a draft gave, on the evaluation's questions and under load: a typed part of speed.json."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from deepspec.artifacts import Spec
from deepspec.formats.scores import Interval

_MS = 1000


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServeOptions(Spec):
    """Which loads an engine is measured under, with the draft and without it. No loads and no rates: none."""

    loads: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Requests at once: each is followed by the next as soon as it is answered (closed loop)."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Requests per second, arriving by chance (Poisson), whether earlier ones are answered or not (open loop)."""
    requests: int = Field(default=16, gt=1)
    """Measured requests of a level, at least; a load of n has at least 2 n."""
    max_tokens: int = Field(default=64, gt=1)
    """Of an answer."""
    ends: Literal["fixed", "natural"] = "fixed"
    """Whether every answer goes on to `max_tokens`, or ends where the target ends it."""
    contexts: tuple[Annotated[int, Field(gt=31)], ...] = ()
    """Tokens of the prompts, levels of one length each; none: prompts as they are."""
    checked: int = Field(default=16, ge=0)
    """Prompts of the evaluation that are asked one after another, before any load; 0: what is accepted is not checked.
    """
    prompts: str = ""
    """Checksum of the file that prompts come from; empty: the questions of the evaluation's benchmarks."""
    seed: int = Field(default=0, ge=0)
    """Of arrivals, fillings and intervals."""
    as_of: str | None = None
    """Moment of a measurement that is to be made anew."""

    @property
    def wanted(self) -> bool:
        """Return whether anything is measured."""
        return bool(self.loads or self.rates)

    @property
    def widest(self) -> int:
        """Return how many requests an engine should take at once."""
        return max(self.loads, default=8)

    @property
    def room(self) -> int:
        """Return the tokens that an answer takes beside the longest prompt that is asked for."""
        return self.max_tokens + max(self.contexts, default=0)

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        for name in ("loads", "rates", "contexts"):
            told = getattr(self, name)
            if list(told) != sorted(set(told)):
                raise ValueError(f"{name} {told} do not ascend; give each once, the smallest first")
        return self


class EngineSpeed(_Model):
    """What an engine that served target and draft told, against what decoding here made of the same prompts."""

    engine: Annotated[str, AfterValidator(lambda told: engine_name(told))]
    samples: int
    tokens_per_round: Interval
    """The engine's."""
    ours: Interval
    difference: Interval | None = Field(default=None, exclude_if=lambda found: found is None)
    """How many more tokens a round makes there than here, on the same prompts; None: earlier versions did not tell."""
    same_answers: int = Field(default=0, exclude_if=lambda found: not found)
    """Answers that are, token for token, those that were decoded here; 0 of earlier versions."""
    otherwise: Interval | None = Field(default=None, exclude_if=lambda found: found is None)
    """Share of the rounds over those answers that are others than here, at least; None: there is no such answer."""
    agrees: bool
    """Whether the two intervals overlap, that of the difference reaches what rounding can do, and the rounds over the
    same answers are the same ones."""
    accept_rate: float
    """Accepted over drafted tokens."""
    tokens_per_second: float
    plain_tokens_per_second: float | None

    @property
    def warning(self) -> str:
        """Return what to say where the engine does not accept what we do; else nothing."""
        if self.agrees:
            return ""
        parts = [] if self.difference is None else [f"prompt by prompt a difference of {told(self.difference)}"]
        if self.otherwise is not None:
            share = f"{told(self.otherwise)} of the rounds are others"
            parts.append(f"where it gives the very answers, of {self.same_answers} prompts, {share}, at least")
        paired = f" ({'; '.join(parts)})" if parts else ""
        return (
            f"{self.engine} makes {told(self.tokens_per_round)} tokens per round of prompts on which "
            f"{told(self.ours)} were measured here{paired}: what it serves is not what was evaluated."
        )

    @property
    def speedup(self) -> float | None:
        """Return how much faster the engine is with the draft."""
        plain = self.plain_tokens_per_second
        return None if plain is None else self.tokens_per_second / plain

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        return {
            "engine": self.engine,
            "samples": self.samples,
            "tokens per round": told(self.tokens_per_round),
            "here": told(self.ours),
            **({} if self.difference is None else {"difference": told(self.difference)}),
            **(
                {}
                if self.otherwise is None
                else {"other rounds": f"{told(self.otherwise)}, {self.same_answers} answers"}
            ),
            "accepted of drafted": f"{self.accept_rate:.1%}",
            "tokens/s": f"{self.tokens_per_second:.1f}",
            "speed-up": "not measured" if self.speedup is None else f"{self.speedup:.2f}",
            "verdict": "agree" if self.agrees else "DISAGREE",
        }


class Percentiles(_Model):
    """Of seconds."""

    p50: float
    p95: float
    p99: float

    def row(self) -> str:
        """Return them in milliseconds."""
        return " / ".join(f"{_MS * each:.0f}" for each in (self.p50, self.p95, self.p99))


class Side(_Model):
    """A level of load as one engine took it."""

    requests: int
    """Measured; those that kept the load up before and after them are not counted."""
    tokens: int
    tokens_per_second: Interval
    """Of all requests together. Closed loop: requests at once x tokens / seconds of answers; open loop: no interval."""
    first_token: Percentiles
    """From the moment at which a request was to be sent."""
    between_tokens: Percentiles
    """Over tokens; those that come together share the wait for them."""
    latency: Percentiles
    """Of whole answers, from the moment at which a request was to be sent."""
    cached_tokens: int | None
    """Prompt tokens that the engine took from a cache of prefixes; None: it does not tell."""
    client_share: float
    """Of one core, that the client took."""


class Accepted(_Model):
    """What an engine's counters tell of one level."""

    rounds: int
    drafted: int
    accepted: int
    tokens_per_round: Interval
    by_position: tuple[float, ...] = ()
    """Share of rounds that accept the tokens through each position; none: the engine does not tell."""


class Level(_Model):
    """One load: an engine with the draft, and one without it."""

    kind: Literal["closed", "open"]
    load: float
    """Requests at once, or per second."""
    context: int | None = None
    """Tokens of each prompt; None: as they are."""
    drafting: Side | None = None
    plain: Side | None = None
    accepted: Accepted | None = None
    speedup: Interval | None = None
    """Tokens per second with the draft over those without it, on the same prompts; closed loop."""
    notes: tuple[str, ...] = ()
    """What must be known of it: repeated, not measured, limited by the client."""

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        closed = self.kind == "closed"
        sides = (("with", self.drafting), ("without", self.plain))
        return {
            "load": f"{self.load:g} at once" if closed else f"{self.load:g} per second",
            **({"context": self.context} if self.context else {}),
            **{f"tokens/s {name}": _speed(side) for name, side in sides},
            "speed-up": "n/a" if self.speedup is None else told(self.speedup, 2),
            **{f"first token, ms, {name}": side.first_token.row() if side else "n/a" for name, side in sides},
            **{f"between tokens, ms, {name}": side.between_tokens.row() if side else "n/a" for name, side in sides},
            "tokens per round": "n/a" if self.accepted is None else told(self.accepted.tokens_per_round, 2),
            "by position": " ".join(f"{each:.2f}" for each in self.accepted.by_position) if self.accepted else "",
            "notes": "; ".join(self.notes),
        }


class BreakEven(_Model):
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


class ProposedLength(_Model):
    """How many tokens to propose at a load, by the costs measured there."""

    load: int
    tokens: int
    """0: serve without the draft."""
    speedup: float
    """To expect of it."""


class Tried(_Model):
    """The draft served with other settings, at one load."""

    load: int
    max_tokens: int
    """Proposed per round, at most."""
    least: float
    """Proposals are cut before a token less likely than this (llama.cpp's p_min)."""
    tokens_per_second: Interval
    tokens_per_round: Interval | None


class Change(_Model):
    """One level, in an earlier measurement and in this one."""

    load: float
    context: int | None
    before: Interval
    now: Interval
    verdict: Literal["faster", "slower", "no difference"]


class UnderLoad(_Model):
    """An engine with and without the draft, at several loads."""

    version: Literal[1] = 1
    engine: Annotated[str, AfterValidator(lambda told: engine_name(told))]
    plain_engine: Annotated[str | None, AfterValidator(lambda told: told and engine_name(told))]
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
                "tokens/s": told(each.tokens_per_second, 1),
                "tokens per round": "n/a" if each.tokens_per_round is None else told(each.tokens_per_round, 2),
            }
            for each in self.tried
        ]

    def change_rows(self) -> list[dict[str, Any]]:
        """Return a row for each level that was measured before, too."""
        return [
            {
                "requests at once": f"{each.load:g}",
                **({"context": each.context} if each.context else {}),
                "tokens/s before": told(each.before, 1),
                "now": told(each.now, 1),
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


def engine_name(told: str) -> str:
    """Return what an engine calls itself, without a build that is not known: llama.cpp b0-unknown is llama.cpp."""
    return told.removesuffix(" b0-unknown")


def told(found: Interval, digits: int = 3) -> str:
    """Return a number with its interval where there is one."""
    if found.value is None:
        return "n/a"
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def overlap(one: Interval, other: Interval) -> bool:
    """Return whether two intervals have a number in common; an unknown one has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


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


def _speed(side: Side | None) -> str:
    return "n/a" if side is None else told(side.tokens_per_second, 1)
