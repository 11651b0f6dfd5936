"""Two drafts on the same questions."""

from pathlib import Path

import pytest

from deepspec.decoding.compare import ALL, compare_drafts, regressions
from deepspec.errors import SourceError
from deepspec.formats.numbers import Interval
from deepspec.formats.scores import Difference, LosslessCheck
from tests.given.published.numbers import scores


def test_shared_questions_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first = scores(tmp_path, "a", {"sums/0": 0, "sums/1": 3, "talk/0": 2, "only/0": 4})
    second = scores(tmp_path, "b", {"sums/0": 1, "sums/1": 4, "talk/0": 2})
    found = {each.benchmark: each for each in compare_drafts(first, second)}
    assert set(found) == {"all", "sums", "talk"}
    assert (found["sums"].first, found["sums"].second) == pytest.approx((2.5, 3.5))
    assert found["sums"].difference.low == pytest.approx(1.0)
    assert found["sums"].verdict == "better"
    assert found["talk"].verdict == "no difference seen"
    assert found["all"].samples == 3


def between(benchmark: str, low: float, high: float, temperature: float = 0.0) -> Difference:
    return Difference(
        benchmark=benchmark,
        temperature=temperature,
        samples=9,
        first=2.0,
        second=2.0 + (low + high) / 2,
        difference=Interval(value=(low + high) / 2, low=low, high=high),
    )


@pytest.mark.parametrize(
    ("found", "worse"),
    [
        ([between(ALL, -0.5, -0.1)], ("accepted length at temperature 0 fell from 2.000 to 1.700",)),
        ([between(ALL, -0.5, 0.1)], ()),  # a drop within the interval is none
        ([between(ALL, 0.1, 0.5)], ()),
        ([between("sums", -0.5, -0.1), between(ALL, -0.2, 0.1)], ()),  # one of many is soon worse by chance
        (
            [between(ALL, -0.1, 0.1), between(ALL, -0.4, -0.2, 1.0)],
            ("accepted length at temperature 1 fell from 2.000 to 1.700",),
        ),
        ([], ()),
    ],
)
def test_a_draft_is_worse_where_the_interval_of_all_is_below_zero(
    found: list[Difference], worse: tuple[str, ...]
) -> None:
    assert regressions(found, None, None) == worse


def test_losing_losslessness_is_worse() -> None:
    good = LosslessCheck(samples=2, equal=1, ties=1, divergences=())
    bad = LosslessCheck(samples=2, equal=1, ties=0, divergences=())
    assert regressions([], good, bad) == ("decoding at temperature 0 is no longer lossless",)
    assert regressions([], bad, bad) == regressions([], good, good) == regressions([], good, None) == ()


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="share no question"):
        compare_drafts(scores(tmp_path, "a", {"sums/0": 1}), scores(tmp_path, "b", {"talk/0": 1}))
