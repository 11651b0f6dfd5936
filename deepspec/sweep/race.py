"""The order in which rows are trained, and which of them can no longer win."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from deepspec.errors import TrainingError
from deepspec.sweep.board import Board, Cost, Entrant, Trial, beaten, standings


class Race:
    """Rows, and what they have shown so far. All are trained from one seed, then from the next.

    Args:
        names: of the rows; the others are held against the first.
        train: name and seed -> what came of it; words: why it failed.
    """

    def __init__(self, names: Sequence[str], train: Callable[[str, int], Trial | str]) -> None:
        """Train nothing yet."""
        self._train = train
        self._first = names[0]
        self._trials: dict[str, list[Trial]] = {name: [] for name in names}
        self._costs: dict[str, Cost] = {}
        self._beaten: set[str] = set()
        self._failed: dict[str, str] = {}

    def run(self, seed: int) -> None:
        """Train every row that can still win from one seed; one that fails is trained no more."""
        for name, trials in self._trials.items():
            if name in self._beaten or name in self._failed:
                continue
            trial = self._train(name, seed)
            if isinstance(trial, str):
                self._failed[name] = f"seed {seed}: {trial}"
            else:
                trials.append(trial)

    def time(self, shapes: Mapping[str, str], cost: Callable[[str, int], Cost | str]) -> None:
        """Let every shape of draft be timed once, by the first row that has it.

        Args:
            shapes: name of a row -> the shape of its drafts; equal ones cost the same.
            cost: name and seed -> what a round takes; words: why it failed.
        """
        found: dict[str, Cost | str] = {}
        for name, trials in self._trials.items():
            if not trials:
                continue
            shape = shapes[name]
            if shape not in found:
                found[shape] = cost(name, trials[0].seed)
            timed = found[shape]
            if isinstance(timed, str):
                self._failed[name] = f"timing a round: {timed}"
                trials.clear()
            else:
                self._costs[name] = timed

    def leave_behind(self) -> None:
        """Let rows that are beaten be trained no more, but for the first, which all are held against."""
        going = [each for each in self.entrants() if each.name not in self._beaten | self._failed.keys()]
        self._beaten |= beaten(going) - {self._first}

    def entrants(self) -> list[Entrant]:
        """Return the rows that have shown something."""
        return [
            Entrant(name=name, trials=tuple(trials), cost=self._costs.get(name))
            for name, trials in self._trials.items()
            if trials
        ]

    def board(self, equal: Literal["steps", "seconds"]) -> Board:
        """Return the leaderboard as it stands."""
        return Board(
            equal=equal,
            standings=standings(self.entrants(), self._first, self._beaten),
            failed=dict(sorted(self._failed.items())),
        )

    def steps_at_equal_seconds(self) -> dict[str, int]:
        """Return how many steps of each row take the processor as long as all those of the first.

        Raises:
            TrainingError: a row was not trained, or its draft does not tell how long a step took.
        """
        shown = {name: trials[0] for name, trials in self._trials.items() if trials}
        paces = {name: trial.step_cpu_seconds for name, trial in shown.items() if trial.step_cpu_seconds}
        untold = [name for name in self._trials if name not in paces]
        if untold:
            raise TrainingError(
                f"nobody knows how long a step of {', '.join(untold)} takes: see their runs; a draft of an earlier "
                "release does not tell it: delete that (deepspec gc --artifact draft/ADDRESS --yes), it is made anew"
            )
        seconds = shown[self._first].steps * paces[self._first]
        return {name: max(1, round(seconds / pace)) for name, pace in paces.items()}
