"""Acceptance as an engine tells it, held against ours, and whether it serves the target at all."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from deepspec.errors import EngineError
from deepspec.formats.numbers import Interval, overlap
from deepspec.placement import Endpoint
from deepspec.rounds.decoded import Decoded, Round
from deepspec.serving.check import (
    DecodedPrompt,
    ServedShape,
    against_ours,
    check_answers,
    check_engine,
    check_served_target,
    in_turn,
    same_answers,
)
from deepspec.serving.client import ServedAnswer, ServingClient
from deepspec.serving.numbers import tokens_per_round
from tests.given.engines.streaming import Fake, serving


def known(name: str, accepted: int, begins: str = "", text: str = "") -> DecodedPrompt:
    """Return 9 tokens: the first from the prompt, 8 from rounds that accept so many and add one."""
    rounds = (Round(room=99, proposed=3, accepted=accepted, stopped=False),) * (8 // (accepted + 1))
    found = Decoded(sample_id=name, prompt_tokens=2, tokens=(1,) * 9, finish_reason="length", rounds=rounds)
    return DecodedPrompt(prompt=[5, 6], decoded=found, begins=begins, text=text)


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM"])
def test_what_the_engine_accepts_is_held_against_ours(kind: str) -> None:
    with serving(Fake(kind=kind)) as endpoint:
        found = check_engine(endpoint, None, [known("a", 1), known("b", 1)], 9)
    assert found.tokens_per_round.value == pytest.approx(8 / 4)  # 9 - 1 - 4 = 4 rounds made 8 tokens
    assert (found.ours.value, found.agrees, found.warning) == (2.0, True, "")
    assert found.accept_rate == pytest.approx(1 / 3)
    assert found.engine == f"{kind} 7"
    assert found.speedup is None


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM"])
def test_an_engine_that_accepts_less_is_warned_of(kind: str) -> None:
    with serving(Fake(kind=kind)) as endpoint:
        found = check_engine(endpoint, None, [known("a", 3)], 9)
    assert not found.agrees
    assert "2.000 [2.000, 2.000] tokens per round of prompts on which 4.000 [4.000, 4.000]" in found.warning
    assert found.difference == Interval(value=-2, low=-2, high=-2)


def test_a_round_whose_draft_ends_the_answer_is_counted_by_an_engine_that_counts() -> None:
    """8 tokens: one from the prompt, three rounds of two, and one whose drafted token is the last: 8 - 1 - 4 = 3."""

    async def asked(endpoint: Endpoint) -> list[ServedAnswer]:
        async with ServingClient(endpoint) as client:
            return await in_turn(client, [known("a", 1)], 8)

    with serving(Fake(kind="vLLM", stops=True)) as endpoint:
        (answer,) = asyncio.run(asked(endpoint))
    assert (answer.tokens, answer.accepted, answer.rounds) == (8, 4, 4)


def test_prompts_are_compared_one_by_one() -> None:
    """Long and short rounds lie wide apart, so that both intervals are wide; each prompt takes one round more."""
    asked = [known("a", 7), known("b", 0)] * 6  # 1 and 8 rounds for 8 tokens
    moments: dict[str, Any] = {"text": "", "intended": 0.0, "sent": 0.0, "arrivals": (1.0,), "end": 1.0}
    answers = [ServedAnswer(tokens=9, drafted=20, accepted=accepted, **moments) for accepted in (6, 0) * 6]  # 2 and 8
    found = against_ours("engine", answers, [], asked)
    assert found is not None
    assert overlap(found.tokens_per_round, found.ours)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(16 / 10 - 16 / 9)
    assert found.difference.high is not None
    assert found.difference.high < 0
    assert not found.agrees
    assert "(prompt by prompt a difference of -0.178 [" in found.warning
    alike = against_ours("engine", [replace(each, accepted=7 * (each.accepted > 0)) for each in answers], [], asked)
    assert alike is not None
    assert (alike.agrees, alike.difference) == (True, Interval(value=0, low=0, high=0))


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM"])
def test_another_draft_that_is_accepted_as_often_takes_other_rounds_over_the_same_answers(kind: str) -> None:
    """As with layers that are off by one: 2 and 8 rounds here, 8 and 2 there, and ten of each two prompts for both."""
    asked = [known("a", 3, text="a" * 9), known("b", 0, text="a" * 9)] * 6
    with serving(Fake(kind=kind, by_turn=(0, 3))) as endpoint:
        found = check_engine(endpoint, None, asked, 9)
    assert found.tokens_per_round == found.ours
    assert found.difference is not None
    assert found.difference.value == 0
    assert found.difference.low is not None
    assert found.difference.low < 0, "so neither the intervals nor their difference tell"
    assert found.same_answers == 12
    assert found.otherwise == Interval(value=0.75, low=0.75, high=0.75)  # 6 of 8, at each prompt
    assert not found.agrees
    assert "where it gives the very answers, of 12 prompts, 0.750 [0.750, 0.750] of the rounds are others, at" in (
        found.warning
    )
    with serving(Fake(kind=kind, by_turn=(3, 0))) as endpoint:
        alike = check_engine(endpoint, None, asked, 9)
    assert (alike.agrees, alike.same_answers, alike.otherwise) == (True, 12, Interval(value=0, low=0, high=0))
    assert alike.row()["other rounds"] == "0.000 [0.000, 0.000], 12 answers"


def test_rounds_are_compared_over_the_same_answers_alone() -> None:
    """A stop token that the engine leaves out of its text is one; another length, another text or none is not."""
    moments: dict[str, Any] = {"intended": 0.0, "sent": 0.0, "arrivals": (1.0,), "end": 1.0}
    told = [("abc", 9), ("abc", 8), ("abd", 9), ("", 9)]
    answers = [ServedAnswer(text=text, tokens=tokens, drafted=20, accepted=2, **moments) for text, tokens in told]
    asked = [known(str(n), 1, text="abc<end>") for n in range(4)]
    assert same_answers(answers, asked) == (1, Interval(value=1 / 3, low=1 / 3, high=1 / 3))  # 6 rounds, not 4
    assert same_answers(answers[1:], asked[1:]) == (0, None)
    assert same_answers(answers[:1], [known("0", 1)]) == (0, None), "nobody knows what was answered here"


def test_a_draft_that_cannot_decide_takes_another_round_now_and_then() -> None:
    """One round more in 40 answers of 4: two thirds of a percent."""
    moments: dict[str, Any] = {"text": "a", "intended": 0.0, "sent": 0.0, "arrivals": (1.0,), "end": 1.0}
    answers = [ServedAnswer(tokens=9, drafted=12, accepted=4 - (n == 7), **moments) for n in range(40)]
    found = against_ours("engine", answers, [], [known(str(n), 1, text="a") for n in range(40)])
    assert found is not None
    assert found.otherwise is not None
    assert found.otherwise.value == pytest.approx(1 / 161)
    assert found.agrees


def test_the_target_alone_gives_the_speed_up() -> None:
    with serving(Fake()) as endpoint, serving(Fake(drafts=False)) as plain:
        found = check_engine(endpoint, plain, [known("a", 1)], 9)
    assert (found.tokens_per_second, found.speedup) == pytest.approx((90, 1.0))  # both tell 100 ms


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "other"])
def test_an_engine_without_a_draft_is_refused(kind: str) -> None:
    with serving(Fake(kind=kind, drafts=False)) as endpoint, pytest.raises(EngineError, match="drafted nothing"):
        check_engine(endpoint, None, [known("a", 1)], 9)


def test_an_engine_that_is_not_there_is_named() -> None:
    nowhere = Endpoint(url="http://127.0.0.1:9/v1", model="pair")
    with pytest.raises(EngineError, match=r"engine http://127\.0\.0\.1:9/v1"):
        check_engine(nowhere, None, [known("a", 1)], 9)


def test_an_engine_that_stops_in_the_middle_of_an_answer_is_named() -> None:
    with serving(Fake(dies_at=(0,))) as endpoint, pytest.raises(EngineError, match="check that it runs"):
        check_engine(endpoint, None, [known("a", 1)], 9)


def test_another_model_and_another_width_are_refused() -> None:
    async def check(endpoint: Endpoint) -> None:
        async with ServingClient(endpoint) as client:
            await check_served_target(client, ServedShape(name="tiny", hidden_size=8))

    with serving(Fake()) as endpoint:
        asyncio.run(check(endpoint))
        with pytest.raises(EngineError, match="serves target, not 'other'; correct --model"):
            asyncio.run(check(endpoint.model_copy(update={"model": "other"})))
    with serving(Fake(width=9)) as endpoint, pytest.raises(EngineError, match="hidden size is 9, that of tiny 8"):
        asyncio.run(check(endpoint))


def test_a_target_that_answers_otherwise_is_refused() -> None:
    asked = [known(str(n), 1, begins="a") for n in range(4)]

    async def check(endpoint: Endpoint) -> None:
        async with ServingClient(endpoint) as client:
            check_answers(client, await in_turn(client, asked, 9), asked, "tiny")

    with serving(Fake()) as endpoint:
        asyncio.run(check(endpoint))
    refused = "another target than the release is for: at temperature 0 0 of 4 answers begin as those of tiny"
    with serving(Fake(text="b")) as endpoint, pytest.raises(EngineError, match=refused):
        asyncio.run(check(endpoint))


def test_agreement_is_an_overlap_of_intervals() -> None:
    moments: dict[str, Any] = {"text": "", "intended": 0.0, "sent": 0.0, "arrivals": (1.0,), "end": 1.0}
    answers = [ServedAnswer(tokens=n + 1, drafted=20, accepted=n - 10, **moments) for n in (12, 14, 16, 18, 20)]
    found = tokens_per_round(answers)  # 10 rounds each: 1.2 to 2.0
    assert found is not None
    assert found.value == pytest.approx(1.6)
    assert overlap(found, Interval(value=1.7, low=1.5, high=1.9))
    assert not overlap(found, Interval(value=2.5, low=2.3, high=2.7))
    assert not overlap(found, Interval(value=None, low=None, high=None))
