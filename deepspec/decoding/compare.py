"""Is one draft better than another? The same questions, pair by pair; and is a draft worse than it was?"""

from collections.abc import Iterable, Mapping, Sequence

from deepspec.artifacts import Artifact
from deepspec.errors import SourceError
from deepspec.formats.numbers import interval
from deepspec.formats.scores import SCORES, Difference, LosslessCheck, decoded_of, read_scores, trace_rows
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import estimates, paired_difference, tally

ALL = "all"
"""Stands for every benchmark together."""

Key = tuple[str, float]
"""Benchmark, or `ALL`, and temperature."""

Asked = Mapping[Key, Mapping[str, Decoded]]
"""Key -> sample id -> what was decoded."""


def compare_drafts(first: Artifact, second: Artifact) -> list[Difference]:
    """Return the difference of accepted lengths on each benchmark and on all together, at each temperature.

    Args:
        first: a `scores` artifact.
        second: another.

    Raises:
        SourceError: they share no question.
    """
    slots = max(read_scores(each.path(SCORES)).slots for each in (first, second))
    found = differences(published(first), published(second), slots)
    if not found:
        raise SourceError(f"{first.prefix} and {second.prefix} share no question; evaluate both on the same benchmarks")
    return found


def published(scores: Artifact) -> Asked:
    """Return what published scores were computed from."""
    rows = (row for row in trace_rows(scores) if row["role"] == "benchmark")
    return grouped((row["benchmark"], row["temperature"], decoded_of(row)) for row in rows)


def grouped(samples: Iterable[tuple[str, float, Decoded]]) -> Asked:
    """Return decoded samples by benchmark and by all together; those without a round tell nothing."""
    found: dict[Key, dict[str, Decoded]] = {}
    for benchmark, temperature, decoded in samples:
        if decoded.rounds:
            for name in (benchmark, ALL):
                found.setdefault((name, temperature), {})[decoded.sample_id] = decoded
    return found


def differences(first: Asked, second: Asked, slots: int) -> list[Difference]:
    """Return the differences on the questions that both were asked."""
    shared = {key: sorted(samples.keys() & second.get(key, {}).keys()) for key, samples in sorted(first.items())}
    return [
        _difference(key, [first[key][name] for name in names], [second[key][name] for name in names], slots)
        for key, names in shared.items()
        if names
    ]


def regressions(
    found: Sequence[Difference], before: LosslessCheck | None, now: LosslessCheck | None
) -> tuple[str, ...]:
    """Return in what way a draft has become worse; empty where nothing says so.

    The alarm is all benchmarks together, one interval a temperature: of many benchmarks one is soon worse by chance.

    Args:
        found: today's accepted lengths against the baseline's.
        before: the baseline's lossless check.
        now: today's.
    """
    told = [
        f"accepted length at temperature {each.temperature:g} fell from {each.first:.3f} to {each.second:.3f}"
        for each in found
        if each.benchmark == ALL and each.verdict == "worse"
    ]
    if before is not None and before.passed and now is not None and now.passed is False:
        told.append("decoding at temperature 0 is no longer lossless")
    return tuple(told)


def _difference(key: Key, first: Sequence[Decoded], second: Sequence[Decoded], slots: int) -> Difference:
    one, other = tally(first, slots), tally(second, slots)
    return Difference(
        benchmark=key[0],
        temperature=key[1],
        samples=len(first),
        first=estimates(one)["accepted_length"].value,
        second=estimates(other)["accepted_length"].value,
        difference=interval(paired_difference(one, other)),
    )
