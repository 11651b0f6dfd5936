"""Splits and choices follow the sample's id: they survive other rows, other orders and larger limits."""

from typing import Any

import numpy as np
import pytest

from deepspec.prepare.choose import KEPT, choose, rank_of, split_of
from deepspec.prepare.spec import PrepareSpec, Source, Splits

FROZEN = ["train"] * 4 + ["validation"] + ["train"] * 3 + ["calibration", "train"]


def spec(*sources: Source, **changes: Any) -> PrepareSpec:
    sources = sources or (Source(digest="d", name="a"),)
    return PrepareSpec(sources=sources, **changes)


def chosen(count: int, spec: PrepareSpec, origins: list[int] | None = None) -> Any:
    ranks = np.array([rank_of(f"id{i}", 0) for i in range(count)], dtype=np.uint64)
    sources = np.array([0] * count if origins is None else origins, dtype=np.uint16)
    return choose(ranks, sources, np.zeros(count, dtype=np.bool_), spec)


def test_splits_have_their_shares_and_are_frozen() -> None:
    splits = Splits(validation=0.1, calibration=0.05, test=0.05)
    found = [split_of(f"id{i}", 0, splits) for i in range(10_000)]
    assert found.count("validation") / 10_000 == pytest.approx(0.1, abs=0.01)
    assert found.count("test") / 10_000 == pytest.approx(0.05, abs=0.01)
    assert found.count("train") / 10_000 == pytest.approx(0.8, abs=0.02)
    assert [split_of(f"id{i}", 0, splits) for i in range(10)] == FROZEN, "published splits must never move"


def test_another_seed_is_another_split() -> None:
    splits = Splits(validation=0.5)
    assert [split_of(f"{i}", 0, splits) for i in range(50)] != [split_of(f"{i}", 1, splits) for i in range(50)]


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is left to train on"):
        Splits(validation=0.5, calibration=0.3, test=0.2)


def test_fewer_samples_are_among_more_samples() -> None:
    few, many = chosen(1000, spec(max_samples=20)) == KEPT, chosen(1000, spec(max_samples=300)) == KEPT
    assert (few.sum(), many.sum()) == (20, 300)
    assert not (few & ~many).any()


def test_choice_does_not_depend_on_what_comes_after() -> None:
    """Of 100 rows 50 stay; with 100 more rows and the limit doubled in kind, a kept row has only stronger rivals."""
    alone, among = chosen(100, spec(max_samples=50)) == KEPT, chosen(200, spec(max_samples=50))[:100] == KEPT
    assert not (among & ~alone).any()


def test_limits_hold_per_source() -> None:
    sources = (Source(digest="a", name="a", limit=3), Source(digest="b", name="b"))
    reasons = chosen(20, spec(*sources), [0] * 10 + [1] * 10)
    assert (reasons[:10] == "limit").sum() == 7
    assert (reasons[10:] == KEPT).all()


@pytest.mark.parametrize(("limit", "kept"), [(None, (60, 20)), (40, (30, 10))])
def test_weights_are_proportions_of_the_result(limit: int | None, kept: tuple[int, int]) -> None:
    """3 : 1 of 100 and 20 rows: the scarce source gives all its 20, the other 60; of 40 it is 30 and 10."""
    sources = (Source(digest="a", name="a", weight=3), Source(digest="b", name="b", weight=1))
    reasons = chosen(120, spec(*sources, max_samples=limit), [0] * 100 + [1] * 20)
    assert ((reasons[:100] == KEPT).sum(), (reasons[100:] == KEPT).sum()) == kept


def test_weights_are_for_all_sources_or_none() -> None:
    with pytest.raises(ValueError, match="give all or none"):
        spec(Source(digest="a", name="a", weight=3), Source(digest="b", name="b"))


def test_near_duplicates_are_counted_as_such() -> None:
    near = np.array([False, True])
    assert list(choose(np.zeros(2, np.uint64), np.zeros(2, np.uint16), near, spec())) == [KEPT, "near_duplicate"]
