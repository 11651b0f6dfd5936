"""What came of a simulation, in numbers that a person can hold against a run."""

from collections.abc import Sequence
from typing import Self

from deepspec.simulate.engine import ModelledEngine
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.time_spent import TimeSpent
from deepspec.specs import Spec


class SimulationResult(Spec):
    """What came of a simulation. Shares are between 0 and 1."""

    seconds: float
    steps: int
    """Optimizer steps that stand at the end."""
    finished: bool
    """Whether these are all."""
    samples: int
    """Of these steps."""
    samples_per_second: float
    """Of these, over all the time."""
    trainers_busy: float
    """Share of the ranks' time in which they computed."""
    trainers_waited: float
    """Share in which they waited for states."""
    trainers_down: float
    """Share in which they ended, started, saved states of others or waited for each other."""
    busy_while_up: float
    """Share in which they computed of that in which they computed or waited for states: what more engines raise."""
    engines_busy: float
    """Share of the engines' time in which they read."""
    engines_down: float
    """Share in which they did not answer."""
    engines_waited: float
    """Seconds in which nothing was being made since there was no room, all ranks together."""
    stalls: int
    """Waits of a rank for states of a second or more."""
    longest_stall: float
    """Seconds."""
    start_seconds: float
    """Seconds in which processes, before they trained, had engines proven and read the start of their draft."""
    engine_failures: int
    trainer_failures: int
    gave_up: int
    """Starts of a trainer that ended since no engine answered."""
    steps_again: int
    """Steps that were done again after a failure."""
    read_per_trained: float
    """Tokens that engines read, for each token of the steps that stand."""
    rows_lost: int
    """Samples that a step should have read and did not."""

    @classmethod
    def of(
        cls, scenario: Scenario, tally: TimeSpent, steps: int, seconds: float, engines: Sequence[ModelledEngine],
        trainer_failures: int,
    ) -> Self:  # fmt: skip
        """Return what came of a scenario in so many seconds."""
        ranks, fleet = scenario.ranks * seconds, len(engines) * seconds
        busy, waited = tally.computed / ranks, tally.waiting / ranks
        samples = steps * scenario.global_batch
        read = sum(engine.read for engine in engines)
        return cls(
            seconds=seconds,
            steps=steps,
            finished=steps == scenario.total_steps,
            samples=samples,
            samples_per_second=samples / seconds,
            trainers_busy=busy,
            trainers_waited=waited,
            trainers_down=max(0.0, 1 - busy - waited),
            busy_while_up=tally.computed / max(1e-9, tally.computed + tally.waiting),
            engines_busy=read / scenario.engine_rate / fleet,
            engines_down=sum(engine.seconds_down for engine in engines) / fleet,
            engines_waited=tally.engines_waited,
            stalls=tally.stalls,
            longest_stall=tally.longest,
            start_seconds=tally.starting,
            engine_failures=sum(engine.failures for engine in engines),
            trainer_failures=trainer_failures,
            gave_up=tally.gave_up,
            steps_again=tally.again,
            read_per_trained=read / max(1.0, samples * scenario.tokens),
            rows_lost=tally.lost,
        )
