"""Is one draft better than another? The same questions, pair by pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepspec.artifacts import Artifact
from deepspec.decoding.measure import Estimate, estimates, paired_difference, tally
from deepspec.decoding.results import Decoded
from deepspec.errors import SourceError
from deepspec.formats.conversations import published_rows
from deepspec.formats.scores import SCORES, decoded_of, read_scores

Key = tuple[str, float]
"""Benchmark ("all": every one together) and temperature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two drafts on the questions that both were asked."""

    benchmark: str
    temperature: float
    samples: int
    first: float
    second: float
    """Accepted lengths with bonus."""
    difference: Estimate
    """Second less first, with the interval of paired samples."""

    @property
    def verdict(self) -> str:
        """Return what the interval allows to say of the second draft."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "no difference seen"

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        return {
            "benchmark": self.benchmark,
            "temperature": self.temperature,
            "samples": self.samples,
            "first": f"{self.first:.3f}",
            "second": f"{self.second:.3f}",
            "difference": f"{self.difference.value:+.3f}",
            "95 % interval": f"{self.difference.low:+.3f} to {self.difference.high:+.3f}",
            "the second is": self.verdict,
        }


def compare(first: Artifact, second: Artifact) -> list[Difference]:
    """Return the difference of accepted lengths on each benchmark and on all together, at each temperature.

    Args:
        first: a `scores` artifact.
        second: another.

    Raises:
        SourceError: they share no question.
    """
    slots = max(read_scores(each.path(SCORES)).slots for each in (first, second))
    one, other = _samples(first), _samples(second)
    found = [
        _difference(key, pairs, slots) for key, samples in sorted(one.items()) if (pairs := _pairs(samples, other, key))
    ]
    if not found:
        raise SourceError(f"{first.prefix} and {second.prefix} share no question; evaluate both on the same benchmarks")
    return found


def _samples(scores: Artifact) -> dict[Key, dict[str, Decoded]]:
    found: dict[Key, dict[str, Decoded]] = {}
    for row in published_rows(scores):
        if row["role"] == "benchmark" and row["rounds"]:
            decoded = decoded_of(row)
            for name in (row["benchmark"], "all"):
                found.setdefault((name, row["temperature"]), {})[decoded.sample_id] = decoded
    return found


def _pairs(
    samples: Mapping[str, Decoded], other: Mapping[Key, Mapping[str, Decoded]], key: Key
) -> list[tuple[Decoded, Decoded]]:
    theirs = other.get(key, {})
    return [(samples[name], theirs[name]) for name in sorted(samples) if name in theirs]


def _difference(key: Key, pairs: list[tuple[Decoded, Decoded]], slots: int) -> Difference:
    first, second = (tally([pair[side] for pair in pairs], slots) for side in (0, 1))
    return Difference(
        benchmark=key[0],
        temperature=key[1],
        samples=len(pairs),
        first=estimates(first)["accepted_length"].value,
        second=estimates(second)["accepted_length"].value,
        difference=paired_difference(first, second),
    )
