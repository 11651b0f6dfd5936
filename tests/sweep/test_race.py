"""Which rows are trained from which seeds."""

import pytest

from deepspec.errors import TrainingError
from deepspec.sweep.board import Cost, Trial
from deepspec.sweep.race import Race

LENGTHS = {"asked": (1.5, 1.5, 1.5), "beaten": (1.2, 1.21, 1.2), "near": (1.45, 1.48, 1.6)}
PACES = {"asked": 0.5, "beaten": 0.25, "near": 2.0}


class Trainer:
    """Tells what is known of each row, and remembers what it was asked."""

    def __init__(self, *, fails: str = "", pace: bool = True) -> None:
        self.asked: list[tuple[str, int]] = []
        self._fails = fails
        self._pace = pace

    def __call__(self, name: str, seed: int) -> Trial | str:
        self.asked.append((name, seed))
        if name == self._fails:
            return "out of memory"
        pace = PACES[name] if self._pace else None
        return Trial(
            seed=seed, draft=f"{name}-{seed}", steps=100, step_cpu_seconds=pace, accepted_length=LENGTHS[name][seed]
        )


def test_all_rows_are_trained_from_one_seed_before_the_next() -> None:
    train = Trainer()
    race = Race(list(LENGTHS), train)
    for seed in range(2):
        race.run(seed)
    assert train.asked == [("asked", 0), ("beaten", 0), ("near", 0), ("asked", 1), ("beaten", 1), ("near", 1)]


def test_what_cannot_win_gets_no_further_seed_and_stays_on_the_board() -> None:
    train = Trainer()
    race = Race(list(LENGTHS), train)
    for seed in range(3):
        race.run(seed)
        race.leave_behind()
    assert [name for name, seed in train.asked if seed == 1] == ["asked", "beaten", "near"], "one seed tells nothing"
    assert [name for name, seed in train.asked if seed == 2] == ["asked", "near"]
    board = race.board("steps")
    assert {each.variant: len(each.seeds) for each in board.standings} == {"asked": 3, "near": 3, "beaten": 2}
    assert board.failed == {}


def test_the_first_row_is_never_left_behind() -> None:
    train = Trainer()
    race = Race(["beaten", "asked"], train)
    for seed in range(3):
        race.run(seed)
        race.leave_behind()
    assert [seed for name, seed in train.asked if name == "beaten"] == [0, 1, 2]


def test_a_row_that_fails_is_told_and_does_not_end_the_others() -> None:
    train = Trainer(fails="near")
    race = Race(list(LENGTHS), train)
    for seed in range(2):
        race.run(seed)
    assert ("near", 1) not in train.asked
    board = race.board("steps")
    assert board.failed == {"near": "seed 0: out of memory"}
    assert board.failures() == "near failed, seed 0: out of memory; the same sweep goes on with them"
    assert {each.variant for each in board.standings} == {"asked", "beaten"}


def test_equal_seconds_are_as_many_steps_as_take_as_long_as_the_first_ones() -> None:
    race = Race(list(LENGTHS), Trainer())
    race.run(0)
    assert race.steps_at_equal_seconds() == {"asked": 100, "beaten": 200, "near": 25}


def test_a_row_of_which_nobody_knows_the_pace_is_named() -> None:
    race = Race(list(LENGTHS), Trainer(pace=False))
    race.run(0)
    with pytest.raises(TrainingError, match="how long a step of asked, beaten, near takes"):
        race.steps_at_equal_seconds()


def test_each_shape_is_timed_once() -> None:
    race, timed = Race(list(LENGTHS), Trainer()), []
    race.run(0)

    def cost(name: str, seed: int) -> Cost:
        timed.append((name, seed))
        return Cost(value=1.25 if name == "asked" else 2.5, spread=1.0)

    race.time({"asked": "small", "beaten": "large", "near": "small"}, cost)
    assert timed == [("asked", 0), ("beaten", 0)]
    costs = {each.variant: each.round_cost for each in race.board("steps").standings}
    assert costs == {"asked": 1.25, "near": 1.25, "beaten": 2.5}


def test_a_shape_that_cannot_be_timed_takes_its_rows_off_the_board() -> None:
    race = Race(list(LENGTHS), Trainer())
    race.run(0)
    large = Cost(value=2.5, spread=1.0)
    race.time(
        {"asked": "small", "beaten": "large", "near": "small"}, lambda name, _: "no room" if name == "asked" else large
    )
    board = race.board("steps")
    assert board.failed == {"asked": "timing a round: no room", "near": "timing a round: no room"}
    assert [each.variant for each in board.standings] == ["beaten"]
