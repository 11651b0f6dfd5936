"""A trainer's process in made-up time: stream, readers, queue, room and dispatcher are the real ones.

What is made up is how long things take. A rank asks and reads as `deepspec.gathering.live` and `deepspec.steps.reader`
do, whose threads are tasks here.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar, cast

from deepspec.gathering.ahead import Ahead, rooms
from deepspec.gathering.asking import PROBE_TOKENS, PROBES, Asking, Gives
from deepspec.records.stream import Cut, PackedRow, Share, Stream
from deepspec.simulate.data import ModelledKept, ModelledSamples
from deepspec.simulate.engine import ModelledEngine, ModelledRequest, ModelledStates
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.time_spent import TimeSpent
from deepspec.states.staging import Staging
from deepspec.steps.reader import Pace, ReadAhead, padded_bytes, steps_told

T = TypeVar("T")


class Tasks:
    """What runs beside: it ends with its owner."""

    def __init__(self) -> None:
        """Run nothing yet."""
        self._running: dict[asyncio.Task[Any], None] = {}

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a coroutine."""
        task = asyncio.get_running_loop().create_task(work)
        self._running[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._running[task]
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it

    async def end(self) -> None:
        """Cancel what still runs."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Readers:
    """So many threads that read, as tasks: the interface of a pool.

    Args:
        count: of them.
        tasks: where they run.
    """

    def __init__(self, count: int, tasks: Tasks) -> None:
        """Read nothing yet."""
        self._free, self._tasks = asyncio.Semaphore(count), tasks

    def submit(self, fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any) -> asyncio.Task[T]:
        """Begin a call once a reader is free."""
        return self._tasks.begin(self._call(fn, args))

    async def _call(self, fn: Callable[..., Coroutine[Any, Any, T]], args: Sequence[Any]) -> T:
        async with self._free:
            return await fn(*args)


class Rank:
    """One rank of a trainer, from its start to its end.

    Args:
        scenario: rates and room.
        rank: which one.
        lengths: of the samples of the training split.
        engines: that are asked.
        kept: states that are kept, of all ranks.
        tally: is told how the time was spent.
    """

    def __init__(
        self, scenario: Scenario, rank: int, lengths: list[int], engines: Sequence[ModelledEngine],
        kept: ModelledKept, tally: TimeSpent,
    ) -> None:  # fmt: skip
        """Ask for nothing yet."""
        self._scenario, self._rank, self._kept, self._tally = scenario, rank, kept, tally
        self._loop, self._tasks = asyncio.get_running_loop(), Tasks()
        batch = scenario.global_batch // scenario.grain
        self._cut = Cut(ranks=scenario.ranks, micro_batch=max(1, scenario.micro_batch // scenario.grain))
        self.samples = ModelledSamples(lengths, scenario.state_bytes, scenario.seed, self._expect)
        self._stream = Stream(self.samples, batch, scenario.seed)
        self.pace = Pace(
            workers=scenario.readers,
            bytes_ahead=scenario.read_bytes,
            steps_told=steps_told(len(engines), max(1, scenario.global_batch // scenario.ranks)),
        )
        self._staging = Staging(scenario.ahead_bytes)
        clients: Sequence[Gives[ModelledRequest, ModelledStates]] = engines
        jitter = Random(f"{scenario.seed} {rank}")
        self._asking = Asking(clients, self._check, self._staging, jitter, scenario.patience)
        by_length = [max(1, length // scenario.grain) for length in sorted(lengths)]
        self._probes = [min(PROBE_TOKENS, by_length[len(lengths) * n // PROBES]) for n in range(PROBES)]
        limit = rooms(scenario.ahead_bytes)["train"]
        self._queue: Ahead[ModelledStates | None] = Ahead(self._ask, self._size_of, limit, self._loop.time)

    async def begin(self) -> None:
        """Prove the engines.

        Raises:
            EngineError: none answers.
        """
        await self._asking.begin()

    async def read_first(self, count: int) -> None:
        """Read so many samples, the first of the first epoch, as the start of a draft does."""
        numbers = list(self.samples.order(0))[:count]
        self._expect(numbers)
        for number in numbers:
            await self._record(number)

    async def end(self) -> None:
        """Give up what is under way."""
        self._tally.engines_waited += self._queue.level.makers_waited
        await self._asking.end()
        await self._tasks.end()

    async def train(self, start: int, end: int, stepped: Callable[[int, list[int]], Coroutine[Any, Any, None]]) -> None:
        """Take the steps start to end - 1.

        Args:
            start: first step.
            end: the step behind the last.
            stepped: awaited with each step and the numbers of the samples that were read for it.
        """
        ahead = ReadAhead(self, Readers(self.pace.workers, self._tasks), range(start, end))
        for step in range(start, end):
            planned, read = ahead.next_step(), list[int]()
            for plan in planned.futures:
                await self._wait(plan)
            for _ in planned.futures:
                numbers = await self._wait(ahead.next_states())
                read += numbers
                await self._compute(sum(map(self.samples.length, numbers)) / self._scenario.trainer_rate)
            if step == start:
                await asyncio.sleep(self._scenario.first_step)
            await stepped(step, read)
            await self._compute(self._scenario.step_seconds)

    def share(self, step: int) -> Share:
        """Return what this rank computes of a step."""
        return self._stream.share(step, self._rank, self._cut)

    async def plan(self, rows: Sequence[PackedRow]) -> None:
        """Read the tokens of some rows, which takes no time."""

    async def load(self, rows: Sequence[PackedRow]) -> list[int]:
        """Return the numbers of the samples whose states were read for some rows."""
        return [await self._record(draw.number) for row in rows for draw in row]

    def size(self, rows: Sequence[PackedRow]) -> int:
        """Return the bytes of their states."""
        return padded_bytes(self.samples, rows)

    async def _compute(self, seconds: float) -> None:
        begin = self._loop.time()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._tally.computed += self._loop.time() - begin

    async def _wait(self, coming: asyncio.Task[T]) -> T:
        begin = self._loop.time()
        try:
            return await coming
        finally:
            self._tally.waited(self._loop.time() - begin)

    def _expect(self, numbers: Sequence[int]) -> None:
        self._queue.expect(numbers)

    async def _record(self, number: int) -> int:
        with self._queue.claimed(number) as coming:
            found = await cast(asyncio.Future[ModelledStates | None], coming)
        return number if found is None else found.number

    def _ask(self, number: int) -> asyncio.Future[ModelledStates | None]:
        """Have a sample made, or say that it is kept."""
        if not self._kept.has(number):
            return self._tasks.begin(self._from_engines(number))
        here: asyncio.Future[ModelledStates | None] = self._loop.create_future()
        here.set_result(None)
        return here

    async def _from_engines(self, number: int) -> ModelledStates | None:
        tokens = self.samples.length(number)
        size = tokens * self.samples.state_bytes
        given = await self._asking.given(ModelledRequest(number, tokens), f"sample {number}", size)
        self._kept.put(given.number, size)
        self._staging.free(size)
        return given

    def _size_of(self, number: int) -> int:
        return 0 if self._kept.has(number) else self.samples.length(number) * self.samples.state_bytes

    async def _check(self, engine: Gives[ModelledRequest, ModelledStates]) -> None:
        for tokens in self._probes:
            await engine.ask(ModelledRequest(-1, tokens))
