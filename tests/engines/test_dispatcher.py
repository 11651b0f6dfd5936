"""Who is asked, without HTTP: engines here are objects that answer as told, in a time of their own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from deepspec.asking.question import Answer, Question
from deepspec.engines.dispatcher import (
    ATTEMPTS,
    FAILURES_TO_TRIP,
    FIRST_PROBE,
    LONGEST_WAIT,
    SILENT_AFTER,
    SILENT_SECONDS,
    SILENT_TIMES,
    Dispatcher,
)
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from tests.engines.virtual import now, run_virtually

DAY = 86400.0


Rule = Callable[[int], AskError | None]
"""Of the number of a question: how it fails, if it does."""
T = TypeVar("T")


class Fake:
    """Fails or answers by a rule; keeps which seeds it was asked for, and when."""

    model = "tiny"

    def __init__(self, label: str, rule: Rule | None = None, seconds: float = 0.0) -> None:
        self.label = label
        self.rule = rule or (lambda number: None)
        self.seconds = seconds
        self.asked: list[int] = []
        self.times: list[float] = []

    async def ask(self, question: Question) -> Answer:
        number = len(self.asked)
        self.asked.append(question.seed)
        self.times.append(now())
        await asyncio.sleep(self.seconds)
        if error := self.rule(number):
            raise error
        return Answer(content="", finish_reason="stop", completion_tokens=1, endpoint=self.label)


Asking = Dispatcher[Fake, Question, Answer]
Check = Callable[[Fake], Awaitable[None]]


def question(number: int) -> Question:
    return Question(messages=[], tools=[], seed=number, thinking=False)


async def well(engine: Fake) -> None:
    """Find nothing wrong."""


def busy(number: int) -> AskError:
    return AskError("quota", "busy", retry_after=DAY)


def broken(number: int) -> AskError:
    return AskError("broken", "engine")


def run(body: Callable[[Asking], Awaitable[T]], *engines: Fake, check: Check = well) -> tuple[Asking, T]:
    """Run `body(dispatcher)`; return the dispatcher and what it returns."""

    async def main() -> tuple[Asking, T]:
        dispatcher: Asking = Dispatcher(engines, lambda engine, asked: engine.ask(asked), check)
        try:
            return dispatcher, await body(dispatcher)
        finally:
            await dispatcher.close()

    found: tuple[Asking, T] = run_virtually(main())
    return found


def ask(count: int, *engines: Fake, check: Check = well) -> tuple[Asking, list[Answer]]:
    async def body(dispatcher: Asking) -> list[Answer]:
        return await asyncio.gather(*(dispatcher.ask(question(n)) for n in range(count)))

    return run(body, *engines, check=check)


def watched(seconds: float, *engines: Fake, check: Check = well, count: int = 1) -> tuple[float, float, list[bool]]:
    """Ask for so many seconds; return the dispatcher's idle and paused seconds at their end, and the questions."""

    async def body(dispatcher: Asking) -> tuple[float, float, list[bool]]:
        asked = [asyncio.create_task(dispatcher.ask(question(n))) for n in range(count)]
        await asyncio.sleep(seconds)
        told = dispatcher.seconds_idle, dispatcher.seconds_paused, [task.done() for task in asked]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return told

    return run(body, *engines, check=check)[1]


def test_questions_go_where_the_load_is_least() -> None:
    one, other = Fake("one", seconds=0.05), Fake("other", seconds=0.05)
    ask(8, one, other)
    assert (len(one.asked), len(other.asked)) == (4, 4)


def test_a_failed_question_is_asked_of_another_endpoint_next() -> None:
    def fails_first(number: int) -> AskError | None:
        return AskError("broken", "engine") if number < FAILURES_TO_TRIP - 1 else None

    sick, busy = Fake("sick", fails_first), Fake("busy", seconds=0.01)
    ask(10, sick, busy)
    failed = sick.asked[: FAILURES_TO_TRIP - 1]
    assert len(set(failed)) == len(failed)  # none of them came straight back
    assert set(failed) <= set(busy.asked)


@pytest.mark.parametrize("seconds", [0.3, 3600.0, DAY])
def test_a_pause_that_an_endpoint_asks_for_is_kept_however_long(seconds: float) -> None:
    refuses = Fake("only", lambda number: AskError("busy", "busy", retry_after=seconds) if number == 0 else None)
    ask(1, refuses)
    assert seconds <= refuses.times[1] - refuses.times[0] < seconds + 1


def test_a_question_that_cannot_be_answered_is_asked_once() -> None:
    refuses = Fake("one", lambda number: AskError("too long", "row"))
    with pytest.raises(AskError, match="too long"):
        ask(1, refuses, Fake("other", lambda number: AskError("too long", "row")))
    assert len(refuses.asked) == 1


def test_a_question_that_keeps_failing_is_given_up_after_so_many_attempts() -> None:
    sick = Fake("sick", broken)
    with pytest.raises(AskError, match="broken"):
        ask(1, sick)
    assert len(sick.asked) == ATTEMPTS


def test_a_tripped_endpoint_is_asked_again_only_after_the_check() -> None:
    checks = list[int]()

    async def finds_it_well_the_third_time(engine: Fake) -> None:
        checks.append(len(engine.asked))
        if len(checks) == 1:
            raise AskError("still down", "engine")
        if len(checks) == 2:
            raise EngineError("serves another model")

    sick = Fake("sick", lambda number: AskError("broken", "engine") if number < FAILURES_TO_TRIP else None)
    dispatcher, answers = ask(6, sick, check=finds_it_well_the_third_time)
    assert len(answers) == 6
    assert len(checks) == 3
    assert len(set(checks)) == 1  # nothing was asked between the checks
    assert dispatcher.lanes[0].state == "up"


def test_a_fault_that_no_probe_sees_counts_as_nothing_under_way() -> None:
    """Each probe finds the endpoint well, each question fails at once: nearly all of the time is idle."""
    idle, _, _ = watched(600, Fake("sick", broken), count=400)
    assert idle > 590


def test_a_few_questions_that_cannot_be_answered_do_not_keep_the_others_waiting() -> None:
    """Ten poison prompts come first, an endpoint that answers each of the others at once: no matter of minutes."""

    class Picky(Fake):
        async def ask(self, question: Question) -> Answer:
            if question.seed < 10:
                raise AskError("no answer", "odd", reason="odd_answer")
            return await super().ask(question)

    async def body(dispatcher: Asking) -> tuple[float, list[Answer | BaseException]]:
        asked = [dispatcher.ask(question(n)) for n in range(10)]
        failed = await asyncio.gather(*asked, return_exceptions=True)
        return now(), failed

    seconds, failed = run(body, Picky("picky"))[1]
    assert all(isinstance(error, AskError) for error in failed)
    assert seconds < 120


def test_one_real_answer_sets_the_idle_time_back() -> None:
    """One answer in ten minutes, and probes between that find nothing wrong."""
    longest = 0.0

    class Lazy(Fake):
        async def ask(self, question: Question) -> Answer:
            if now() < 600 * (len(self.asked) + 1):
                raise AskError("broken", "engine")
            return await super().ask(question)

    async def body(dispatcher: Asking) -> int:
        nonlocal longest
        lazy = dispatcher.lanes[0].engine
        while now() < 3600:
            longest = max(longest, dispatcher.seconds_idle)
            with contextlib.suppress(AskError):
                await dispatcher.ask(question(0))
        return len(lazy.asked)

    assert 5 <= run(body, Lazy("lazy"))[1] <= 7
    assert 500 < longest < 700  # it is looked at between questions only


def test_an_endpoint_that_works_for_hours_on_one_question_is_not_idle() -> None:
    idle, paused, (done,) = watched(4 * 3600, Fake("slow", seconds=5 * 3600))
    assert (idle, paused, done) == (0.0, 0.0, False)


def test_a_question_that_waits_for_its_next_attempt_is_not_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.engines.dispatcher.FIRST_WAIT", 1000.0)
    monkeypatch.setattr("deepspec.engines.dispatcher.LONGEST_WAIT", 1000.0)
    idle, _, _ = watched(600, Fake("sick", lambda number: AskError("broken", "engine") if number == 0 else None))
    assert idle == 600


def test_nothing_asked_of_an_endpoint_that_is_up_is_no_idle_time() -> None:
    """As when all rows are answered and a slow store takes its time."""
    idle, _, _ = watched(3600, Fake("well"), count=0)
    assert idle == 0


def test_while_all_endpoints_are_paused_no_attempt_is_used_up() -> None:
    """Refused for ten days, the checks too, and far more often than a question may fail."""

    def quota(number: int) -> AskError | None:
        return AskError("quota", "busy", retry_after=3600.0) if now() < 10 * DAY else None

    async def check(engine: Fake) -> None:
        if error := quota(0):
            raise error

    one, other = Fake("one", quota), Fake("other", busy)
    (answer,) = ask(1, one, other, check=check)[1]
    assert answer.endpoint == "one"
    assert one.times[-1] >= 10 * DAY


def test_a_question_that_is_refused_while_others_are_answered_is_given_up() -> None:
    """As one that is larger than the service's quota of a minute allows at all."""

    class Picky(Fake):
        async def ask(self, question: Question) -> Answer:
            if question.seed == 0:
                raise AskError("too large", "busy", retry_after=1.0)
            return await super().ask(question)

    async def body(dispatcher: Asking) -> tuple[Answer | BaseException, BaseException | None]:
        async def others() -> None:
            for number in range(1, 200):
                await dispatcher.ask(question(number))

        return await asyncio.gather(dispatcher.ask(question(0)), others(), return_exceptions=True)

    (refused, others) = run(body, Picky("picky"))[1]
    assert str(refused) == "too large"
    assert others is None


def test_a_question_that_is_refused_though_every_check_passes_is_given_up() -> None:
    """The last row of a run, larger than the quota: nothing else is answered any more, but the endpoint is well."""
    picky = Fake("picky", lambda number: AskError("too large", "busy"))
    with pytest.raises(AskError, match="too large"):
        ask(1, picky)


def test_endpoints_that_are_all_paused_tell_when_the_first_may_be_asked() -> None:
    _, paused, _ = watched(1, Fake("one", busy), Fake("other", lambda n: AskError("busy", "busy", retry_after=7200.0)))
    assert paused == pytest.approx(7199, abs=1)


def test_an_endpoint_that_still_works_is_waited_for_though_the_others_are_paused() -> None:
    _, paused, _ = watched(1, Fake("one", busy), Fake("other", seconds=60), count=8)
    assert paused == 0


def test_an_endpoint_that_was_paused_at_the_start_is_probed_after_its_pause() -> None:
    probed = list[float]()

    async def check(engine: Fake) -> None:
        probed.append(now())

    async def body(dispatcher: Asking) -> Answer:
        dispatcher.distrust(dispatcher.lanes[0].engine, AskError("quota", "busy", retry_after=DAY))
        return await dispatcher.ask(question(0))

    run(body, Fake("only"), check=check)
    assert DAY <= probed[0] < DAY + 2 * FIRST_PROBE


def test_a_check_that_is_refused_for_a_time_is_made_again_after_it() -> None:
    checks = list[float]()

    async def check(engine: Fake) -> None:
        checks.append(now())
        if len(checks) == 1:
            raise AskError("quota", "busy", retry_after=DAY)

    ask(1, Fake("sick", lambda n: broken(n) if n < FAILURES_TO_TRIP else None), check=check)
    assert DAY <= checks[1] - checks[0] < DAY + LONGEST_WAIT


class Hanging(Fake):
    """Answers in its time until it hangs; what it has then is never answered."""

    def __init__(self, label: str, seconds: float, hangs_after: int, deadline: float = DAY) -> None:
        super().__init__(label, seconds=seconds)
        self.hangs_after = hangs_after
        self.deadline = deadline
        self.given_up: list[float] = []

    async def ask(self, question: Question) -> Answer:
        if len(self.asked) < self.hangs_after:
            return await super().ask(question)
        self.asked.append(question.seed)
        self.times.append(now())
        try:
            await asyncio.sleep(self.deadline)
        except asyncio.CancelledError:
            self.given_up.append(now())
            raise
        raise AskError("no answer in time", "late")


def unwell(engine: Fake) -> Awaitable[None]:
    raise AskError("still hangs", "engine")


def test_what_a_hung_endpoint_has_goes_to_others_long_before_the_deadline_and_all_at_once() -> None:
    hung, well_one = Hanging("hung", seconds=1.0, hangs_after=20), Fake("well", seconds=1.0)
    dispatcher, answers = ask(200, hung, well_one, check=unwell)
    assert len(answers) == 200
    held = hung.times[hung.hangs_after :]
    assert len(held) > 1
    assert set(hung.given_up) == {hung.given_up[0]}
    assert len(hung.given_up) == len(held)
    assert hung.given_up[0] - held[0] == pytest.approx(SILENT_SECONDS, abs=1.5)
    assert dispatcher.lanes[0].failures["late"] == len(held)
    assert set(hung.asked) - set(hung.asked[: hung.hangs_after]) <= set(well_one.asked)
    assert dispatcher.lanes[0].tripped


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, SILENT_SECONDS), (60.0, 60.0 * SILENT_TIMES)])
def test_a_slow_endpoint_may_be_silent_for_longer(seconds: float, expected: float) -> None:
    hung = Hanging("hung", seconds=seconds, hangs_after=SILENT_AFTER)
    watched(seconds + 2 * expected, hung, check=unwell, count=SILENT_AFTER + 1)
    assert hung.given_up == [pytest.approx(seconds + expected, abs=1)]


def test_an_endpoint_of_which_nothing_is_known_is_waited_for_to_the_deadline() -> None:
    hung = Hanging("hung", seconds=1.0, hangs_after=0)
    watched(SILENT_SECONDS * 20, hung)
    assert hung.given_up == [SILENT_SECONDS * 20]


def test_an_endpoint_whose_answers_take_longer_than_that_has_not_hung() -> None:
    slow = Fake("slow", seconds=2 * SILENT_SECONDS)
    _, answers = ask(2 * SILENT_AFTER + 3, slow)
    assert len(answers) == len(slow.asked)  # none was asked twice


async def asked_later(dispatcher: Asking, *seconds: float) -> None:
    """Ask for what makes an endpoint known, then ask again after each of some times."""
    await asyncio.gather(*(dispatcher.ask(question(n)) for n in range(SILENT_AFTER)))

    async def later(wait: float) -> None:
        await asyncio.sleep(wait)
        await dispatcher.ask(question(0))

    asked = [asyncio.create_task(later(wait)) for wait in seconds]
    await asyncio.wait(asked, timeout=DAY / 2)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


def test_time_in_which_nothing_was_asked_is_no_silence() -> None:
    well_one = Fake("well", seconds=1.0)
    dispatcher, _ = run(lambda each: asked_later(each, SILENT_SECONDS * 9, SILENT_SECONDS * 9), well_one)
    assert len(well_one.asked) == SILENT_AFTER + 2
    assert not dispatcher.lanes[0].failures


def test_a_request_whose_time_is_over_is_no_sign_of_life() -> None:
    hung = Hanging("hung", seconds=1.0, hangs_after=SILENT_AFTER, deadline=SILENT_SECONDS - 20)
    run(lambda each: asked_later(each, 10.0, 60.0), hung, check=unwell)
    # the first one, asked again, and the second
    assert hung.given_up == [pytest.approx(1 + 10 + SILENT_SECONDS, abs=1)] * 2
