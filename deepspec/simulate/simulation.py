"""A training run that is killed and goes on, from its first step to its last, or to the end of the time."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from deepspec.errors import EngineError
from deepspec.records.stream import Stream
from deepspec.simulate.clock import run
from deepspec.simulate.data import ModelledKept, ModelledSamples, lengths_of
from deepspec.simulate.engine import ModelledEngine
from deepspec.simulate.failures import Failure, drawn
from deepspec.simulate.result import SimulationResult
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.time_spent import TimeSpent
from deepspec.simulate.trainer import Rank, Tasks


@dataclass(frozen=True, slots=True)
class ModelledSave:
    """A state to go on from."""

    step: int
    at: float
    """From when on it is whole."""


Heard = Callable[[float], None]
"""Hears how much of something is done, as a share."""
LOOKS = 100
"""Times that a simulation says how far it is."""


def simulate(
    scenario: Scenario, failures: Sequence[Failure] | None = None, heard: Heard = lambda _: None
) -> SimulationResult:
    """Return what comes of a scenario; the same for the same one.

    Args:
        scenario: what is simulated.
        failures: in order; None: drawn from the scenario's means and seed.
        heard: is told how much is done, as a share.

    Raises:
        SimulationError: its parts wait for each other.
    """
    return run(_simulated(scenario, drawn(scenario) if failures is None else failures, heard))


async def _simulated(scenario: Scenario, failures: Sequence[Failure], heard: Heard) -> SimulationResult:
    engines = [
        ModelledEngine(f"engine {number}", scenario, Random(f"{scenario.seed} latency {number}"))
        for number in range(scenario.engines)
    ]
    training, tasks, loop = Training(scenario, engines), Tasks(), asyncio.get_running_loop()
    going = tasks.begin(training.run())
    for failure in failures:
        loop.call_at(failure.at, training.fail if failure.engine is None else engines[failure.engine].fail)
    for look in range(1, LOOKS + 1):
        await asyncio.wait([going], timeout=scenario.seconds * look / LOOKS - loop.time())
        heard(1.0 if going.done() else max(look / LOOKS, training.step / scenario.total_steps))
        if going.done():
            break
    seconds = loop.time()
    if going.done():
        going.result()
    await tasks.end()
    return SimulationResult.of(scenario, training.tally, training.step, seconds, engines, training.failures)


class Training:
    """One run in as many processes as failures make of it.

    Args:
        scenario: what is simulated.
        engines: that are asked.
    """

    def __init__(self, scenario: Scenario, engines: Sequence[ModelledEngine]) -> None:
        """Stand before the first step."""
        self._scenario, self._engines = scenario, engines
        self._loop = asyncio.get_running_loop()
        self._lengths = lengths_of(scenario)
        samples = ModelledSamples(self._lengths, scenario.state_bytes, scenario.seed, lambda _: None)
        self._stream = Stream(samples, scenario.global_batch // scenario.grain, scenario.seed)
        self._kept = ModelledKept(scenario.kept_bytes)
        self._process: asyncio.Task[None] | None = None
        self._saved = list[ModelledSave]()
        self._furthest = 0
        self.step = 0
        """Steps taken, those that a failure undid not counted."""
        self.tally = TimeSpent()
        self.failures = 0

    def fail(self) -> None:
        """End the process, if there is one, as kill -9 does."""
        if self._process is not None:
            self.failures += 1
            self._process.cancel()

    async def run(self) -> None:
        """Train to the last step, in one process after another."""
        tasks = Tasks()
        try:
            while self.step < self._scenario.total_steps:
                await self._one_process(tasks)
        finally:
            await tasks.end()

    async def _one_process(self, tasks: Tasks) -> None:
        self.tally.starts += 1
        self._process = tasks.begin(self._trained(0.0 if self.tally.starts == 1 else self._scenario.trainer_start))
        await asyncio.wait([self._process])
        ended, self._process = self._process, None
        if not ended.cancelled():
            failure = ended.exception()
            if failure is None:
                return
            if not isinstance(failure, EngineError):
                raise failure
            self.tally.gave_up += 1
        now = self._loop.time()
        self._saved = [saved for saved in self._saved if saved.at <= now]
        self.step = self._saved[-1].step if self._saved else 0

    async def _trained(self, start: float) -> None:
        """Train from the newest saved state on, in one process that takes so many seconds to start."""
        await asyncio.sleep(start)
        ranks = [
            Rank(self._scenario, rank, self._lengths, self._engines, self._kept, self.tally)
            for rank in range(self._scenario.ranks)
        ]
        together = _Together(self, len(ranks))
        tasks = Tasks()
        try:
            await self._started(ranks)
            own = [tasks.begin(rank.train(self.step, self._scenario.total_steps, together.stepped)) for rank in ranks]
            await asyncio.gather(*own)
        finally:
            await tasks.end()
            for rank in ranks:
                await rank.end()

    async def _started(self, ranks: Sequence[Rank]) -> None:
        """Have engines proven and, where there is no state to go on from, the start of the draft read and kept."""
        begin, start = self._loop.time(), math.ceil(self._scenario.start_samples / self._scenario.grain)
        try:
            await asyncio.gather(*(rank.begin() for rank in ranks))
            if start and not self._saved:
                await ranks[0].read_first(start)
                self._saved.append(ModelledSave(0, self._loop.time() + self._scenario.save_seconds))
        finally:
            self.tally.starting += self._loop.time() - begin

    def took(self, step: int, read: Sequence[int]) -> None:
        """Count a step of all ranks, and hold what was read for it against what the stream wants."""
        wanted = [draw.number for draw in self._stream.draws(step)]
        self.tally.lost += (Counter(wanted) - Counter(read)).total() + abs(step - self.step) * len(wanted)
        self.tally.steps += 1
        self.tally.again += step < self._furthest
        self.step = step + 1
        self._furthest = max(self._furthest, self.step)
        if self.step % self._scenario.checkpoint_every == 0 or self.step == self._scenario.total_steps:
            self._saved.append(ModelledSave(self.step, self._loop.time() + self._scenario.save_seconds))


class _Together:
    """Ranks that take each step together."""

    def __init__(self, training: Training, count: int) -> None:
        self._training, self._count = training, count
        self._barrier = asyncio.Barrier(count)
        self._read: list[int] = []

    async def stepped(self, step: int, read: list[int]) -> None:
        """Wait until all ranks have taken a step; the last one counts it before any goes on."""
        self._read += read
        if await self._barrier.wait() == self._count - 1:
            self._training.took(step, self._read)
            self._read = []
