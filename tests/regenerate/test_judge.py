"""Which answers are none to train on."""

import asyncio
from typing import Any, cast

import pytest

from deepspec.asking.conversation import regenerate_row
from deepspec.asking.judge import check_answer, check_prompt
from deepspec.asking.question import Answer, Question
from deepspec.asking.sampling import Sampling
from deepspec.errors import RowError
from deepspec.messages.conversations import PromptRow
from tests.given.engines.prompts import prompt

CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}


def said(content: str, finish_reason: str = "stop", **more: Any) -> Answer:
    return Answer(content=content, finish_reason=finish_reason, **more)


def asked(tokens: int | None) -> Question:
    ids = None if tokens is None else [7] * tokens
    return Question(messages=[], tools=[], seed=1, thinking=False, prompt_ids=ids)


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (said("", "length"), "empty_answer", "max_tokens cut it before it said anything"),
        (said("\n\n", "length"), "empty_answer", "max_tokens cut it"),
        (said("", "length", reasoning="I add"), "empty_answer", "max_tokens cut it inside its reasoning"),
        (said("", reasoning="I add. 4."), "only_reasoning", "only reasoning, no content"),
        (said(" \n", reasoning="I add. 4."), "only_reasoning", "only reasoning, no content"),
        (said("", completion_tokens=12), "empty_answer", "the engine counts 12 tokens"),
        (said("", "tool_calls"), "odd_answer", "ends in calls of tools, and holds none"),
        (said("I call", "tool_calls"), "odd_answer", "ends in calls of tools, and holds none"),
    ],
)
def test_an_answer_whose_tokens_are_not_known_is_refused_and_kept_with_its_token_ids(
    answer: Answer, reason: str, message: str
) -> None:
    with pytest.raises(RowError, match=message) as caught:
        check_answer(answer)
    assert caught.value.reason == reason
    check_answer(
        Answer(content=answer.content, finish_reason=answer.finish_reason, reasoning=answer.reasoning, token_ids=[1, 2])
    )


@pytest.mark.parametrize(
    "answer",
    [
        said("4"),
        said("4", "length"),
        said("4", reasoning="I add"),
        said("", completion_tokens=1),  # the target said nothing but its stop token
        said(""),
        said("", "tool_calls", tool_calls=[CALL], completion_tokens=20),
        said("", "length", tool_calls=[CALL]),
    ],
)
def test_other_answers_pass(answer: Answer) -> None:
    check_answer(answer)


def test_an_answer_to_a_prompt_of_other_tokens_is_refused() -> None:
    with pytest.raises(RowError, match="read 200 tokens of a prompt that has 391: it cut it, or") as caught:
        check_prompt(asked(391), said("4", prompt_tokens=200))
    assert caught.value.reason == "prompt_drifted"
    with pytest.raises(RowError, match="read 392 tokens of a prompt that has 391"):
        check_prompt(asked(391), said("4", prompt_tokens=392))


@pytest.mark.parametrize(("has", "read"), [(391, 391), (391, 0), (None, 200)])
def test_a_prompt_that_is_whole_or_cannot_be_counted_passes(has: int | None, read: int) -> None:
    check_prompt(asked(has), said("4", prompt_tokens=read))


def test_an_empty_turn_is_refused_where_another_turn_has_no_ids_and_so_the_row_keeps_none() -> None:
    answers = iter([said("", "length", token_ids=[1, 2]), said("4")])

    async def ask(question: Question) -> Answer:
        return next(answers)

    with pytest.raises(RowError, match="the answer is empty"):
        asyncio.run(regenerate_row(cast(PromptRow, prompt("a", "One?", "Two?")), ask, Sampling()))
