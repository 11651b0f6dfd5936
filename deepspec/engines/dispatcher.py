"""Which endpoint answers which question: the least loaded one; after a failure, another one.

Each endpoint has a limit that adapts (`concurrency`) and a breaker: after a few failures in a row it gets no question
until a probe finds it well again, and then one at a time. So a dead or slow endpoint costs only its own share. One
that takes questions and is silent for far longer than answers took so far has hung: what it has goes to others. One
that asks to be left alone is, for as long as it says.
"""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from deepspec.engines.concurrency import Concurrency
from deepspec.engines.failures import AskError
from deepspec.engines.patience import Patience
from deepspec.errors import EngineError

ATTEMPTS = 8
"""Times that one question fails before its failure is recorded."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds between attempts: doubled each time, with jitter."""
FAILURES_TO_TRIP = 4
"""Failures in a row that open an endpoint's breaker."""
FIRST_PROBE, LONGEST_PROBE = 0.5, 30.0
"""Seconds until an open breaker is probed: doubled each time, with jitter, until the endpoint passes. Not beyond: what
fails then may be the fault of a few questions, and the others wait."""
SILENT_SECONDS, SILENT_TIMES, SILENT_AFTER = 120.0, 10, 8
"""An endpoint with questions under way that gives nothing for so many seconds, and for so many times its slowest
answer, has hung. Before so many answers nothing is known of it, and the deadline of a request is all that there is."""
DEFAULT_PAUSE = 1.0
"""Seconds that an endpoint is left alone after a 429 that names none."""


class Labelled(Protocol):
    """A client of one endpoint."""

    @property
    def label(self) -> str:
        """Return the endpoint's name for people."""


class Counted(Protocol):
    """What an engine gave."""

    @property
    def tokens(self) -> int:
        """Return how many tokens it worked on: what throughput is measured in."""


EngineT = TypeVar("EngineT", bound=Labelled)
QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT", bound=Counted)


@dataclass(slots=True)
class Lane(Generic[EngineT]):
    """One endpoint as the dispatcher sees it."""

    engine: EngineT
    concurrency: Concurrency
    clock: Callable[[], float]
    in_flight: int = 0
    tripped: bool = False
    """The breaker is open: no questions."""
    paused_until: float = 0.0
    failures_in_a_row: int = 0
    refusals_in_a_row: int = 0
    """Times that it said it was busy, asked after its pause and with nothing else of ours to do."""
    is_trusted: bool = True
    """Whether it has answered since its breaker was open, if ever it was."""
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Sum of the answers' latencies."""
    slowest: float = 0.0
    """Longest of them."""
    last_sign: float = 0.0
    """When it last answered, failed, or was given a question with nothing else to do."""
    failures: Counter[str] = field(default_factory=Counter)
    last_failure: str = ""

    @property
    def is_open(self) -> bool:
        """Return whether it may get questions."""
        return not self.tripped and self.paused_until <= self.clock()

    @property
    def seconds_paused(self) -> float:
        """Return how long it still asks to be left alone."""
        return max(0.0, self.paused_until - self.clock())

    @property
    def load(self) -> float:
        """Return the share of the limit that is in use."""
        return self.in_flight / self.concurrency.limit

    @property
    def longest_silence(self) -> float:
        """Return for how many seconds it may give nothing while it has questions."""
        return math.inf if self.answers < SILENT_AFTER else max(SILENT_SECONDS, SILENT_TIMES * self.slowest)

    @property
    def state(self) -> str:
        """Return one word for people."""
        return "down" if self.tripped else "up" if self.is_open else "paused"


class Dispatcher(Generic[EngineT, QuestionT, AnswerT]):
    """Asks questions of several engines.

    Args:
        engines: the clients, at least one.
        put: puts one question to one of them; raises AskError where there is no answer.
        check: awaited before an endpoint that was down gets questions again; raises where it should not.
        jitter: draws by how much waits differ; None: unlike those of any other run.
    """

    def __init__(
        self,
        engines: Sequence[EngineT],
        put: Callable[[EngineT, QuestionT], Awaitable[AnswerT]],
        check: Callable[[EngineT], Awaitable[None]],
        jitter: random.Random | None = None,
    ) -> None:
        """Trust every endpoint at first."""
        self._clock = asyncio.get_running_loop().time
        self.lanes = [Lane(engine, Concurrency(self._clock()), self._clock) for engine in engines]
        self.room = asyncio.Event()
        """Set whenever more questions than before may be under way."""
        self._put = put
        self._check = check
        self._jitter = jitter or random.Random()
        self._waiting: deque[tuple[asyncio.Future[Lane[EngineT]], Lane[EngineT] | None]] = deque()
        self._probes: set[asyncio.Task[None]] = set()
        self._patience = Patience()
        self._asking = 0
        self._signs = 0
        """Answers and passed checks: signs of life."""

    @property
    def capacity(self) -> int:
        """Return how many questions all endpoints that are up take together."""
        return sum(lane.concurrency.limit for lane in self.lanes if lane.is_open)

    @property
    def seconds_idle(self) -> float:
        """Return for how long since the last answer nothing was under way."""
        self._look()
        return self._patience.spent(self._clock())

    @property
    def seconds_paused(self) -> float:
        """Return how long every endpoint still asks to be left alone, while nothing is under way; 0 else."""
        return 0.0 if self._is_working() else min(lane.seconds_paused for lane in self.lanes)

    async def ask(self, question: QuestionT) -> AnswerT:
        """Return the answer of whichever endpoint gives one.

        Raises:
            AskError: the question cannot be answered, or every attempt failed.
        """
        self._asking += 1
        try:
            return await self._ask_until_answered(question)
        finally:
            self._asking -= 1
            self._look()

    def distrust(self, engine: EngineT, error: AskError) -> None:
        """Send an endpoint that did not pass its check no questions until a probe finds it well."""
        for lane in self.lanes:
            if lane.engine is engine:
                self._note_pause(lane, error)
                lane.last_failure = str(error)
                self._trip(lane)
        self._look()

    async def close(self) -> None:
        """Stop probing."""
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    async def _ask_until_answered(self, question: QuestionT) -> AnswerT:
        failures, failed, signs = 0, None, self._signs
        while True:
            lane = await self._take(failed)
            try:
                return await self._ask_one(lane, question)
            except AskError as error:
                # that all endpoints are busy, and answer nobody, says nothing about this question
                failures += error.fault != "busy" or self._signs != signs
                if not error.can_pass or failures >= ATTEMPTS:
                    raise
            failed, signs = lane, self._signs
            await asyncio.sleep(_wait(failures, self._jitter))

    async def _ask_one(self, lane: Lane[EngineT], question: QuestionT) -> AnswerT:
        full = lane.load >= 1
        asked = self._clock()
        try:
            answer = await self._heard(lane, question)
        except AskError as error:
            self._note_failure(lane, error, asked)
            raise
        else:
            self._note_answer(lane, answer, asked, full)
            return answer
        finally:
            lane.in_flight -= 1
            self._hand_out()

    async def _heard(self, lane: Lane[EngineT], question: QuestionT) -> AnswerT:
        """Return the answer; give the question up, with all that the endpoint has, when the endpoint has hung."""
        answer = asyncio.ensure_future(self._put(lane.engine, question))
        try:
            while not answer.done():
                left = lane.last_sign + lane.longest_silence - self._clock()
                if left <= 0:
                    self._trip(lane)
                    told = f"{lane.longest_silence:.0f} s without an answer with {lane.in_flight} requests under way"
                    raise AskError(f"{told}: it has hung", "late")
                await asyncio.wait([answer], timeout=min(left, SILENT_SECONDS))
            return await answer
        finally:
            answer.cancel()
            await asyncio.wait([answer])

    async def _take(self, avoid: Lane[EngineT] | None) -> Lane[EngineT]:
        """Return a lane with a place reserved, waiting for one; another than `avoid` where another is up."""
        place: asyncio.Future[Lane[EngineT]] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, avoid))
        self._hand_out()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                place.result().in_flight -= 1
                self._hand_out()
            raise

    def _hand_out(self) -> None:
        """Give free places to those who wait, in their order."""
        unserved: deque[tuple[asyncio.Future[Lane[EngineT]], Lane[EngineT] | None]] = deque()
        while self._waiting and (free := self._free_lanes()):
            place, avoid = self._waiting.popleft()
            if place.cancelled():
                continue
            others = [lane for lane in free if lane is not avoid]
            if not others and self._any_up_but(avoid):
                unserved.append((place, avoid))
                continue
            lane = min(others or free, key=lambda lane: lane.load)
            if not lane.in_flight:
                lane.last_sign = self._clock()
            lane.in_flight += 1
            place.set_result(lane)
        self._waiting.extendleft(reversed(unserved))
        self.room.set()
        self._look()

    def _look(self) -> None:
        self._patience.look(self._clock(), idle=not self._is_working())

    def _is_working(self) -> bool:
        """Return whether an endpoint works on a question, or would if there were one."""
        return any(lane.in_flight or (lane.is_open and not self._asking) for lane in self.lanes)

    def _free_lanes(self) -> list[Lane[EngineT]]:
        return [lane for lane in self.lanes if lane.is_open and lane.in_flight < lane.concurrency.limit]

    def _any_up_but(self, avoid: Lane[EngineT] | None) -> bool:
        return any(lane.is_open and lane is not avoid for lane in self.lanes)

    def _note_answer(self, lane: Lane[EngineT], answer: AnswerT, asked: float, full: bool) -> None:
        now = self._clock()
        lane.failures_in_a_row = lane.refusals_in_a_row = 0
        lane.is_trusted = True
        lane.answers += 1
        self._signs += 1
        self._patience.answered()
        lane.tokens += answer.tokens
        lane.seconds += now - asked
        lane.slowest, lane.last_sign = max(lane.slowest, now - asked), now
        lane.concurrency.answered(now, asked, answer.tokens, full)

    def _note_failure(self, lane: Lane[EngineT], error: AskError, asked: float) -> None:
        now = self._clock()
        if error.fault != "late":
            lane.last_sign = now
        if error.fault == "row":
            return
        lane.failures[error.fault] += 1
        lane.last_failure = str(error)
        if error.fault in ("busy", "late"):
            lane.concurrency.overloaded(now, asked)
        if error.fault != "busy":
            lane.failures_in_a_row += 1
        elif lane.in_flight == 1 and asked >= lane.paused_until:
            lane.refusals_in_a_row += 1
        self._note_pause(lane, error)
        if max(lane.failures_in_a_row, lane.refusals_in_a_row) >= FAILURES_TO_TRIP:
            self._trip(lane)

    def _note_pause(self, lane: Lane[EngineT], error: AskError) -> None:
        if error.fault != "busy":
            return
        seconds = DEFAULT_PAUSE if error.retry_after is None else error.retry_after
        lane.paused_until = max(lane.paused_until, self._clock() + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.01, self._hand_out)

    def _trip(self, lane: Lane[EngineT]) -> None:
        if lane.tripped:
            return
        lane.tripped, lane.is_trusted = True, False
        probe = asyncio.create_task(self._probe(lane))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, lane: Lane[EngineT]) -> None:
        """Close a lane's breaker when its endpoint passes the check; then one failure opens it anew."""
        failed = 0
        while lane.tripped:
            wait = min(LONGEST_PROBE, FIRST_PROBE * 2 ** min(failed, 10))
            await asyncio.sleep(max(wait * self._jitter.uniform(0.8, 1.2), lane.seconds_paused))
            try:
                await self._check(lane.engine)
            except (AskError, EngineError) as error:
                lane.last_failure = str(error)
                failed += 1
                if isinstance(error, AskError):
                    self._note_pause(lane, error)
                continue
            lane.tripped = False
            self._signs += 1
            lane.failures_in_a_row = FAILURES_TO_TRIP - 1
            lane.concurrency.restart(self._clock())
            self._hand_out()


def _wait(failures: int, jitter: random.Random) -> float:
    """Return the seconds until a question is asked again."""
    doubled = FIRST_WAIT * 2 ** (failures - 1) if failures else 0.0
    return min(LONGEST_WAIT, doubled) + jitter.uniform(0, FIRST_WAIT)
