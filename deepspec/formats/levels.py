"""One load, as an engine with a draft took it and one without: a typed part of speed.json."""

from typing import Any, Literal

from deepspec.formats.numbers import Frozen, Interval, with_interval

_MS = 1000


class Percentiles(Frozen):
    """Of seconds."""

    p50: float
    p95: float
    p99: float

    def row(self) -> str:
        """Return them in milliseconds."""
        return " / ".join(f"{_MS * each:.0f}" for each in (self.p50, self.p95, self.p99))


class Side(Frozen):
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


class Accepted(Frozen):
    """What an engine's counters tell of one level."""

    rounds: int
    drafted: int
    accepted: int
    tokens_per_round: Interval
    by_position: tuple[float, ...] = ()
    """Share of rounds that accept the tokens through each position; none: the engine does not tell."""


class Level(Frozen):
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
            "speed-up": "n/a" if self.speedup is None else with_interval(self.speedup, 2),
            **{f"first token, ms, {name}": side.first_token.row() if side else "n/a" for name, side in sides},
            **{f"between tokens, ms, {name}": side.between_tokens.row() if side else "n/a" for name, side in sides},
            "tokens per round": "n/a" if self.accepted is None else with_interval(self.accepted.tokens_per_round, 2),
            "by position": " ".join(f"{each:.2f}" for each in self.accepted.by_position) if self.accepted else "",
            "notes": "; ".join(self.notes),
        }


def _speed(side: Side | None) -> str:
    return "n/a" if side is None else with_interval(side.tokens_per_second, 1)
