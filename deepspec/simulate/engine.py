"""An engine as a rate: it reads one request after another, and its states are there a moment later."""

import asyncio
from collections import deque
from dataclasses import dataclass
from random import Random

from deepspec.engines.failures import AskError
from deepspec.simulate.scenario import Scenario


@dataclass(frozen=True, slots=True)
class ModelledRequest:
    """A sample that an engine is asked for."""

    number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ModelledStates:
    """What it gave: the number stands for the states."""

    number: int
    tokens: int


_Place = tuple[ModelledRequest, asyncio.Future[ModelledStates]]


class ModelledEngine:
    """An engine behind the interface of a client: it reads in the order of the requests, those that are still wanted.

    Args:
        label: its name.
        scenario: rate, latency, and how long it takes to come back.
        rng: draws latencies.
    """

    def __init__(self, label: str, scenario: Scenario, rng: Random) -> None:
        """Be up, with nothing to do."""
        self.label = label
        self.failures = 0
        self.read = 0.0
        """Tokens that it read, those of what it did not end among them."""
        self._scenario, self._rng = scenario, rng
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Place] = deque()
        self._reads: tuple[_Place, asyncio.TimerHandle, float] | None = None
        """What it reads, when that ends, and when it began."""
        self._leaving: dict[asyncio.Future[ModelledStates], asyncio.TimerHandle] = {}
        """What is read, and not with the trainer yet."""
        self._down_since: float | None = None
        self._down = 0.0

    @property
    def seconds_down(self) -> float:
        """Return how long it did not answer."""
        return self._down + (0.0 if self._down_since is None else self._loop.time() - self._down_since)

    async def ask(self, question: ModelledRequest) -> ModelledStates:
        """Return the states of a sample.

        Raises:
            AskError: it is down, or goes down meanwhile.
        """
        if self._down_since is not None:
            raise AskError(f"{self.label} refuses connections", "engine")
        answer: asyncio.Future[ModelledStates] = self._loop.create_future()
        self._queue.append((question, answer))
        self._begin()
        return await answer

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def fail(self) -> None:
        """Go down, with all that is under way, and come back after a while; nothing if it is down."""
        if self._down_since is not None:
            return
        self.failures += 1
        self._down_since = self._loop.time()
        lost = [answer for _, answer in self._queue] + list(self._leaving)
        if self._reads is not None:
            (_, answer), ends, since = self._reads
            ends.cancel()
            self.read += (self._loop.time() - since) * self._scenario.engine_rate
            lost.append(answer)
        for ends in self._leaving.values():
            ends.cancel()
        self._queue.clear()
        self._leaving.clear()
        self._reads = None
        for answer in lost:
            if not answer.done():
                answer.set_exception(AskError(f"{self.label} closed the connection", "engine"))
        self._loop.call_later(self._scenario.engine_start, self._come_back)

    def _come_back(self) -> None:
        self._down, self._down_since = self.seconds_down, None

    def _begin(self) -> None:
        """Read the next request that somebody waits for, if none is being read."""
        while self._queue and self._reads is None:
            question, answer = self._queue.popleft()
            if not answer.done():
                ends = self._loop.call_later(question.tokens / self._scenario.engine_rate, self._end)
                self._reads = (question, answer), ends, self._loop.time()

    def _end(self) -> None:
        """Let states leave that are read."""
        if self._reads is None:
            return
        (question, answer), _, _ = self._reads
        self._reads = None
        self.read += question.tokens
        spread = self._rng.uniform(-1, 1) * self._scenario.latency_spread
        self._leaving[answer] = self._loop.call_later(
            self._scenario.latency * (1 + spread), self._give, answer, ModelledStates(question.number, question.tokens)
        )
        self._begin()

    def _give(self, answer: asyncio.Future[ModelledStates], given: ModelledStates) -> None:
        del self._leaving[answer]
        if not answer.done():
            answer.set_result(given)
