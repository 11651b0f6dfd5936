"""Who is asked, without HTTP: engines here are objects that answer as told."""

import asyncio
import time

import pytest

from deepspec.errors import EngineError
from deepspec.regenerate.dispatcher import FAILURES_TO_TRIP, Dispatcher
from deepspec.regenerate.engine import Answer, AskError, Question
from deepspec.regenerate.spec import Sampling


class Fake:
    """Fails or answers by a rule; keeps which seeds it was asked for, and when."""

    model = "tiny"

    def __init__(self, label, rule=None, seconds=0.0) -> None:
        self.label = label
        self.rule = rule or (lambda number: None)
        self.seconds = seconds
        self.asked: list[int] = []
        self.times: list[float] = []

    async def ask(self, question, sampling):
        number = len(self.asked)
        self.asked.append(question.seed)
        self.times.append(time.monotonic())
        await asyncio.sleep(self.seconds)
        if error := self.rule(number):
            raise error
        return Answer(content="", finish_reason="stop", completion_tokens=1, endpoint=self.label)


def question(number):
    return Question(messages=[], tools=[], seed=number, thinking=False)


async def well(engine) -> None:
    """Find nothing wrong."""


def ask(count, *engines, check=well):
    async def run():
        dispatcher = Dispatcher(engines, Sampling(), check)
        try:
            return dispatcher, await asyncio.gather(*(dispatcher.ask(question(n)) for n in range(count)))
        finally:
            await dispatcher.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr("deepspec.regenerate.dispatcher.FIRST_WAIT", 0.01)
    monkeypatch.setattr("deepspec.regenerate.dispatcher.FIRST_PROBE", 0.02)
    monkeypatch.setattr("deepspec.regenerate.dispatcher.LONGEST_PROBE", 0.02)


def test_questions_go_where_the_load_is_least():
    one, other = Fake("one", seconds=0.05), Fake("other", seconds=0.05)
    ask(8, one, other)
    assert (len(one.asked), len(other.asked)) == (4, 4)


def test_a_failed_question_is_asked_of_another_endpoint_next():
    def fails_first(number):
        return AskError("broken", "engine") if number < FAILURES_TO_TRIP - 1 else None

    sick, busy = Fake("sick", fails_first), Fake("busy", seconds=0.01)
    ask(10, sick, busy)
    failed = sick.asked[: FAILURES_TO_TRIP - 1]
    assert len(set(failed)) == len(failed)  # none of them came straight back
    assert set(failed) <= set(busy.asked)


def test_a_pause_that_an_endpoint_asks_for_is_kept():
    refuses = Fake("only", lambda number: AskError("busy", "busy", retry_after=0.3) if number == 0 else None)
    ask(1, refuses)
    assert refuses.times[1] - refuses.times[0] >= 0.3


def test_a_question_that_cannot_be_answered_is_asked_once():
    refuses = Fake("one", lambda number: AskError("too long", "row"))
    with pytest.raises(AskError, match="too long"):
        ask(1, refuses, Fake("other", lambda number: AskError("too long", "row")))
    assert len(refuses.asked) == 1


def test_a_tripped_endpoint_is_asked_again_only_after_the_check():
    checks = []

    async def finds_it_well_the_third_time(engine):
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
