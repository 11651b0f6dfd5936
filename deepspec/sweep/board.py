"""The leaderboard of a sweep: several seeds a row, means with Student's intervals, differences seed by seed.

What a row is worth is its accepted length; where a round was timed, accepted length over the cost of a round in plain
steps of the target: how many times faster decoding is than without a draft. Rows that were trained from the same seed
saw the same samples in the same order and were judged on the same held-out answers, so differences are taken seed by
seed. An interval tells what other seeds would change, and the other held-out samples that they draw where there are
more than `train.validation_samples`; it knows nothing of other prompts.
Where rounds were timed, it is wider by what the pairs of timed runs differ by: that moves all seeds of a row alike.
Rows are held against each other by one thing: where some were timed and others not, all go by their accepted length.
"""

from collections.abc import Mapping, Sequence, Set
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtrit

COVERED = 0.95
"""Of the intervals."""
RowVerdict = Literal["best", "left behind", "behind", "not apart from the best", "more seeds are needed"]
"""`left behind`: and not trained from further seeds; `behind`: the interval of the difference lies below 0."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mean(_Model):
    """A mean over seeds and its 95 % interval; one seed has none."""

    value: float
    low: float | None = None
    high: float | None = None

    def widened(self, by: float) -> "Mean":
        """Return the same mean with an interval that is wider on both sides."""
        if self.low is None or self.high is None:
            return self
        return Mean(value=self.value, low=self.low - by, high=self.high + by)

    def words(self, digits: int = 3) -> str:
        """Return it as people read it."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Trial(_Model):
    """A row, trained from one seed."""

    seed: int
    draft: str
    """Address of the published draft."""
    steps: int
    step_cpu_seconds: float | None
    """None: the draft was trained before that was counted."""
    accepted_length: float
    """Of the held-out answers, with the bonus token."""
    kinds: Mapping[str, float] = {}
    """Kind of prompt -> accepted length."""


class Cost(_Model):
    """What a round takes, in plain steps of the target, as it was timed."""

    value: float
    spread: float
    """Largest over smallest of the pairs of runs that it is the median of: how much the machine moved it."""


class Entrant(_Model):
    """A row and what it has shown so far: one trial a seed, at least one."""

    name: str
    trials: tuple[Trial, ...]
    cost: Cost | None = None
    """Of a round; None: not timed."""

    @property
    def scores(self) -> dict[int, float]:
        """Return seed -> what the row is worth."""
        cost = 1.0 if self.cost is None else self.cost.value
        return {each.seed: each.accepted_length / cost for each in self.trials}

    @property
    def doubt(self) -> float:
        """Return how far the timing may have moved all of the scores to one side: half of its spread, as a factor."""
        return 0.0 if self.cost is None else fmean(self.scores.values()) * (sqrt(self.cost.spread) - 1)


class Standing(_Model):
    """A row of the leaderboard."""

    variant: str
    seeds: tuple[int, ...]
    steps: int
    cpu_seconds: Mean | None
    """Processor seconds of all steps."""
    accepted_length: Mean
    kinds: Mapping[str, Mean]
    round_cost: float | None
    """In plain steps of the target; None: not timed."""
    round_cost_spread: float | None
    """Largest over smallest of the pairs of runs that were timed."""
    speedup: Mean | None
    """Accepted length over the cost of a round."""
    against_first: Mean | None
    """Difference from the first row, in what all rows are judged by, on the seeds that both have; None: it is the
    first, or that failed."""
    against_best: Mean | None
    """The same, from the best row."""
    verdict: RowVerdict
    drafts: tuple[str, ...]

    def row(self) -> dict[str, str]:
        """Return what people read."""
        told = {
            "variant": self.variant,
            "seeds": str(len(self.seeds)),
            "steps": str(self.steps),
            "CPU s": "" if self.cpu_seconds is None else f"{self.cpu_seconds.value:.0f}",
            "accepted length": self.accepted_length.words(),
        }
        if self.speedup is not None:
            told |= {"round cost": f"{self.round_cost:.2f}, spread {self.round_cost_spread:.2f}"}
            told |= {"speed-up": self.speedup.words()}
        first = "" if self.against_first is None else self.against_first.words()
        return {**told, "against the first": first, "verdict": self.verdict}

    def kinds_row(self) -> dict[str, str]:
        """Return the accepted lengths by kind of prompt."""
        return {"variant": self.variant, **{kind: mean.words(2) for kind, mean in self.kinds.items()}}


class Board(_Model):
    """A leaderboard."""

    equal: Literal["steps", "seconds"]
    """What all rows had the same of."""
    standings: tuple[Standing, ...]
    """The best first."""
    failed: dict[str, str] = {}
    """Variants that could not be trained or timed -> from which seed, and why."""

    def rows(self) -> list[dict[str, str]]:
        """Return the table that people read."""
        return [each.row() for each in self.standings]

    def kinds_rows(self) -> list[dict[str, str]]:
        """Return the table by kind of prompt; empty where the answers tell no kinds."""
        return [each.kinds_row() for each in self.standings if each.kinds]

    def failures(self) -> str:
        """Return what failed and why, in one message; the command that goes on with it is the same."""
        told = "; ".join(f"{name} failed, {why}" for name, why in self.failed.items())
        return f"{told}; the same sweep goes on with them"


def trial_of(seed: int, draft: str, counts: Mapping[str, Any], scores: Mapping[str, Any] | None = None) -> Trial | None:
    """Return what the manifests of a draft and of its scores tell; None where there is no accepted length.

    Args:
        seed: that it was trained from.
        draft: its address.
        counts: of its manifest.
        scores: counts of the manifest of its scores: what was decoded counts then, at the first temperature; None: what
            was walked over held-out answers.
    """
    length, kinds = _walked(counts.get("held_out") or {}) if scores is None else _decoded(scores)
    if length is None:
        return None
    pace = counts.get("step_cpu_seconds")
    return Trial(
        seed=seed, draft=draft, steps=counts["steps"], step_cpu_seconds=pace, accepted_length=length, kinds=kinds
    )


def _walked(look: Mapping[str, Any]) -> tuple[float | None, dict[str, float]]:
    prefix = "accepted_length/"
    return look.get("accepted_length"), {
        name.removeprefix(prefix): look[name] for name in sorted(look) if name.startswith(prefix)
    }


def _decoded(scores: Mapping[str, Any]) -> tuple[float | None, dict[str, float]]:
    temperature, length = next(iter(scores["accepted_length"].items()))
    told = {name.rpartition("@"): value for name, value in scores["accepted_length_by_benchmark"].items()}
    kinds = {name: value for (name, _, at), value in told.items() if float(at) == float(temperature)}
    return length, {name: value for name, value in sorted(kinds.items()) if value is not None}


def student(values: Sequence[float]) -> Mean:
    """Return the mean of some independent values with Student's interval."""
    count, value = len(values), fmean(values)
    if count < 2:
        return Mean(value=value)
    half = float(stdtrit(count - 1, (1 + COVERED) / 2)) * stdev(values) / sqrt(count)
    return Mean(value=value, low=value - half, high=value + half)


def _alike(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Return rows as they can be held against each other: where not all of them were timed, as if none was."""
    timed = [each for each in entrants if each.cost is not None]
    if len(timed) in (0, len(entrants)):
        return list(entrants)
    return [each.model_copy(update={"cost": None}) for each in entrants]


def seed_difference(one: Entrant, other: Entrant) -> Mean | None:
    """Return how much more one is worth than another, seed by seed; None where they share none."""
    one, other = _alike((one, other))
    ours, theirs = one.scores, other.scores
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    return student([ours[seed] - theirs[seed] for seed in shared]).widened(one.doubt + other.doubt)


def best_of(entrants: Sequence[Entrant]) -> Entrant:
    """Return the one that is worth most, of equals the first."""
    judged = _alike(entrants)
    best = max(range(len(judged)), key=lambda place: fmean(judged[place].scores.values()))
    return entrants[best]


def beaten(entrants: Sequence[Entrant]) -> set[str]:
    """Return the names of those that are worth less than the best of all, beyond what seeds explain.

    Two seeds tell little of how much one difference moves, but all rows together tell what is left where each has its
    own mean and so has each seed. It is taken to be the same for all: of two rows this is the paired test of Student.

    Args:
        entrants: those that are still trained; seeds that one of them lacks are not looked at.
    """
    entrants = _alike(entrants)
    if len(entrants) < 2:
        return set()
    seeds = sorted(set.intersection(*(set(each.scores) for each in entrants)))
    if len(seeds) < 2:
        return set()
    scores = np.array([[each.scores[seed] for seed in seeds] for each in entrants])
    left = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    freedom = (len(entrants) - 1) * (len(seeds) - 1)
    error = sqrt(2 * float((left**2).sum()) / freedom / len(seeds))
    best = entrants[int(scores.mean(1).argmax())]
    least = scores.mean(1).max() - float(stdtrit(freedom, (1 + COVERED) / 2)) * error - best.doubt
    return {each.name for each, mean in zip(entrants, scores.mean(1), strict=True) if mean + each.doubt < least}


def standings(entrants: Sequence[Entrant], first: str, left: Set[str] = frozenset()) -> tuple[Standing, ...]:
    """Return the rows of the leaderboard, the best first.

    Args:
        entrants: in any order.
        first: name of the one that the others are held against; it may be missing.
        left: names of those that are not trained any more.
    """
    if not entrants:
        return ()
    judged = _alike(entrants)
    best, held = best_of(judged), next((each for each in judged if each.name == first), None)
    costs = {each.name: each.cost for each in entrants}
    ordered = sorted(judged, key=lambda each: -fmean(each.scores.values()))
    found = [_standing(each, held, best, costs[each.name]) for each in ordered]
    return tuple(each.model_copy(update={"verdict": "left behind"}) if each.variant in left else each for each in found)


def _standing(one: Entrant, first: Entrant | None, best: Entrant, cost: Cost | None) -> Standing:
    """Return the row of one as it is judged, beside others judged alike; its cost is told wherever it was timed."""
    timed = one.model_copy(update={"cost": cost})
    paces = [each.steps * each.step_cpu_seconds for each in one.trials if each.step_cpu_seconds is not None]
    kinds = sorted(set.intersection(*(set(each.kinds) for each in one.trials)))
    return Standing(
        variant=one.name,
        seeds=tuple(each.seed for each in one.trials),
        steps=one.trials[0].steps,
        cpu_seconds=student(paces) if paces else None,
        accepted_length=student([each.accepted_length for each in one.trials]),
        kinds={kind: student([each.kinds[kind] for each in one.trials]) for kind in kinds},
        round_cost=None if cost is None else cost.value,
        round_cost_spread=None if cost is None else cost.spread,
        speedup=None if cost is None else student(list(timed.scores.values())).widened(timed.doubt),
        against_first=None if first is None or one is first else seed_difference(one, first),
        against_best=None if one is best else seed_difference(one, best),
        verdict=_verdict(one, best),
        drafts=tuple(each.draft for each in one.trials),
    )


def _verdict(one: Entrant, best: Entrant) -> RowVerdict:
    if one is best:
        return "best"
    found = seed_difference(one, best)
    if found is None or found.high is None:
        return "more seeds are needed"
    return "behind" if found.high < 0 else "not apart from the best"
