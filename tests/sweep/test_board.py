"""The leaderboard of a sweep: numbers that can be checked by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspec.sweep.board import Entrant, Mean, Trial, beaten, best_of, seed_difference, standings, student, trial_of
from tests.given.published.numbers import entrant


def test_a_mean_has_students_interval() -> None:
    found = student([1.0, 2.0, 3.0])  # deviation 1, and 4.3027 of two degrees of freedom over the root of 3
    assert found.value == 2.0
    assert (found.low, found.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert found.words(2) == "2.00 [-0.48, 4.48]"


def test_one_seed_has_no_interval() -> None:
    assert student([1.5]) == Mean(value=1.5)
    assert student([1.5]).words() == "1.500"


@given(st.lists(st.floats(1, 8), min_size=2, max_size=6), st.floats(0, 1))
def test_rows_that_differ_by_as_much_from_every_seed_are_apart_however_much_seeds_differ(
    lengths: Any, more: Any
) -> None:
    one, other = entrant("one", *[each + more + 0.01 for each in lengths]), entrant("other", *lengths)
    found = seed_difference(one, other)
    assert found is not None
    assert found.low == pytest.approx(more + 0.01)
    assert beaten([other, one]) == {"other"}


def test_differences_are_taken_on_the_seeds_that_both_have() -> None:
    found = seed_difference(entrant("one", 1.5, 1.7, 9.0), entrant("other", 1.4, 1.5))
    assert found is not None
    assert found.value == pytest.approx(0.15)  # 0.1 and 0.2
    late = entrant("late", 1.0).model_copy(
        update={"trials": (entrant("late", 1.0).trials[0].model_copy(update={"seed": 7}),)}
    )
    assert seed_difference(late, entrant("other", 1.4)) is None


def test_one_seed_beats_nobody_and_nobody_beats_itself() -> None:
    assert beaten([entrant("short", 1.0), entrant("long", 2.0)]) == set()
    assert beaten([entrant("long", 2.0, 1.0)]) == set()
    assert beaten([]) == set()


def test_two_rows_are_apart_where_the_paired_test_says_so() -> None:
    """Differences of 0.1 and 0.3: 12.7 times 0.1 is more than their mean; of 0.19 and 0.21, 12.7 times 0.01 is less."""
    long = entrant("long", 1.5, 1.6)
    assert beaten([entrant("short", 1.4, 1.3), long]) == set()
    assert beaten([entrant("short", 1.31, 1.39), long]) == {"short"}


def test_all_rows_together_tell_how_much_seeds_move_a_difference() -> None:
    """±0.005 is left in four rows of five: 2.776 times 0.0071 is 0.0196; of two rows, 12.7 times 0.01 is 0.127."""
    ups = {"best": 1.50, "near": 1.485, "far": 1.40, "farther": 1.30, "last": 1.20}
    off = {"best": 1, "near": -1, "far": -1, "farther": 1, "last": 0}
    rows = [entrant(name, at + 0.005 * off[name], at + 0.1 - 0.005 * off[name]) for name, at in ups.items()]
    assert beaten(rows) == {"far", "farther", "last"}
    assert beaten([rows[0], rows[2]]) == set(), "of two rows alone nobody knows"


def test_what_is_longer_but_slower_is_worth_less() -> None:
    long, quick = entrant("long", 1.6, cost=2.0), entrant("quick", 1.2, cost=1.2)
    assert best_of([long, quick]) is quick  # 0.8 against 1.0 plain steps a token
    board = standings([long, quick], "long")
    assert [each.variant for each in board] == ["quick", "long"]
    assert [each.speedup.value for each in board if each.speedup] == [1.0, 0.8]
    assert board[1].row()["round cost"] == "2.00, spread 1.00"


def test_a_speed_up_is_not_held_against_an_accepted_length() -> None:
    """1.6 tokens at 2 steps a round are worth 0.8, less than 1.2 tokens; but nobody knows what those cost."""
    timed, untimed = entrant("timed", 1.6, 1.6, cost=2.0, spread=1.44), entrant("untimed", 1.2, 1.2)
    assert best_of([untimed, timed]) is timed
    assert beaten([untimed, timed]) == {"untimed"}
    for one, other, apart in ((timed, untimed, 0.4), (untimed, timed, -0.4)):
        found = seed_difference(one, other)
        assert found is not None
        assert (found.value, found.low, found.high) == pytest.approx((apart, apart, apart))
    best, last = standings([untimed, timed], "untimed")
    assert [best.variant, last.variant] == ["timed", "untimed"]
    assert best.against_first is not None
    assert best.against_first.value == pytest.approx(0.4)
    assert best.speedup is not None
    assert (best.speedup.value, best.round_cost, last.speedup) == (0.8, 2.0, None)
    assert last.verdict == "behind"


def test_a_row_is_beaten_by_no_more_than_the_machine_moved_the_timing() -> None:
    """Worth 1.0 and 0.8; with pairs that differ by a factor of 1.44, 0.2 and 0.16 may be the machine's."""
    quick, slow = entrant("quick", 1.2, 1.21, cost=1.2), entrant("slow", 1.6, 1.61, cost=2.0)
    assert beaten([quick, slow]) == {"slow"}
    moved = entrant("quick", 1.2, 1.21, cost=1.2, spread=1.44), entrant("slow", 1.6, 1.61, cost=2.0, spread=1.44)
    assert moved[0].doubt == pytest.approx(0.2, abs=0.001)
    assert beaten(moved) == set()
    verdicts = {each.variant: each.verdict for each in standings(moved, "quick")}
    assert verdicts == {"quick": "best", "slow": "not apart from the best"}


def test_the_best_is_first_and_every_row_says_how_it_stands() -> None:
    rows = [entrant("asked", 1.50, 1.52, 1.51), entrant("best", 1.60, 1.62, 1.61), entrant("near", 1.58, 1.63, 1.60)]
    board = standings([*rows, entrant("young", 1.4)], "asked")
    assert [each.variant for each in board] == ["best", "near", "asked", "young"]
    assert [each.verdict for each in board] == ["best", "not apart from the best", "behind", "more seeds are needed"]
    best, _, asked, _ = board
    assert best.against_best is None
    assert asked.against_first is None
    assert best.against_first is not None
    assert best.against_first.value == pytest.approx(0.1)
    assert best.cpu_seconds is not None
    assert best.cpu_seconds.value == 50.0  # 100 steps of half a second
    assert best.row() == {
        "variant": "best",
        "seeds": "3",
        "steps": "100",
        "CPU s": "50",
        "accepted length": "1.610 [1.585, 1.635]",
        "against the first": "0.100 [0.100, 0.100]",
        "verdict": "best",
    }
    assert standings([], "asked") == ()
    assert [each.verdict for each in standings(rows, "asked", {"asked"})][-1] == "left behind"


def test_rows_are_held_against_no_other_where_the_first_failed() -> None:
    board = standings([entrant("one", 1.5, 1.6), entrant("other", 1.4, 1.3)], "failed")
    assert [each.against_first for each in board] == [None, None]
    assert [each.row()["against the first"] for each in board] == ["", ""]


def test_a_row_without_its_processor_time_says_none() -> None:
    (row,) = standings([entrant("old", 1.5, pace=None)], "old")
    assert (row.cpu_seconds, row.row()["CPU s"]) == (None, "")


def test_a_trial_is_what_the_manifest_of_a_draft_tells() -> None:
    look = {"step": 9, "accepted_length": 1.5, "accepted_length/code": 1.75, "accepted_length_low/code": 1.5}
    found = trial_of(3, "d", {"steps": 9, "step_cpu_seconds": 0.25, "held_out": look})
    assert found == Trial(seed=3, draft="d", steps=9, step_cpu_seconds=0.25, accepted_length=1.5, kinds={"code": 1.75})
    assert trial_of(3, "d", {"steps": 9, "held_out": {"step": 9, "loss": 2.0}}) is None
    assert trial_of(3, "d", {"steps": 9, "held_out": None}) is None


def test_a_trial_that_was_decoded_is_what_the_scores_tell_at_the_first_temperature() -> None:
    by_benchmark = {"code@0.0": 1.5, "code@1.0": 1.1, "none@0.0": None}
    scores = {"accepted_length": {"0.0": 1.4, "1.0": 1.2}, "accepted_length_by_benchmark": by_benchmark}
    found = trial_of(0, "d", {"steps": 9, "held_out": None}, scores)
    assert found is not None
    assert (found.accepted_length, found.kinds) == (1.4, {"code": 1.5})


def test_kinds_have_means_and_intervals_of_their_own() -> None:
    trials = [
        Trial(
            seed=n, draft="d", steps=1, step_cpu_seconds=1.0, accepted_length=1.5, kinds={"code": length, "chat": 1.0}
        )
        for n, length in enumerate((1.5, 1.7))
    ]
    (row,) = standings([Entrant(name="one", trials=tuple(trials))], "one")
    assert row.kinds["code"].value == pytest.approx(1.6)
    assert row.kinds_row() == {"variant": "one", "chat": "1.00 [1.00, 1.00]", "code": "1.60 [0.33, 2.87]"}
