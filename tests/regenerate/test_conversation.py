"""One sample, turn by turn, against answers written by hand."""

import asyncio
from typing import Any, cast

import pytest

from deepspec.asking.conversation import is_thinking, regenerate_row, turn_seed
from deepspec.asking.dialects import OTHER, body
from deepspec.asking.question import Answer, Question
from deepspec.asking.sampling import Sampling
from deepspec.messages.conversations import AnswerRow, PromptRow
from tests.given.engines.prompts import prompt

WEATHER = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def call(arguments: str, identity: str = "call-1", name: str = "weather") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def with_tools() -> dict[str, Any]:
    """A conversation in which the assistant calls a tool, gets its result, and answers."""
    return {
        **prompt("t", "Will it rain in Rome?"),
        "tools": WEATHER,
        "messages": [
            {"role": "user", "content": "Will it rain in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [call('{"city": "Rome"}')]},
            {"role": "tool", "content": "sunny", "tool_call_id": "call-1"},
            {"role": "assistant", "content": "recorded"},
        ],
    }


class Target:
    """Answers with what it was given, and keeps the questions."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.questions = list[Question]()

    async def __call__(self, question: Question) -> Answer:
        self.questions.append(question)
        return self.answers[len(self.questions) - 1]


def said(content: str, **more: Any) -> Answer:
    return Answer(content=content, finish_reason=more.pop("finish_reason", "stop"), **more)


def regenerate(row: dict[str, Any], *answers: Answer, **sampling: Any) -> tuple[AnswerRow, list[Question]]:
    target = Target(*answers)
    return asyncio.run(regenerate_row(cast(PromptRow, row), target, Sampling(**sampling))), target.questions


def test_each_turn_is_asked_on_the_targets_own_previous_answers() -> None:
    row = prompt("a", "One?", "Two?")
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    answered, (first, second) = regenerate(row, said("1"), said("2"))
    assert [message["content"] for message in first.messages] == ["Be brief.", "One?"]
    assert [message["content"] for message in second.messages] == ["Be brief.", "One?", "1", "Two?"]
    assert [message["content"] for message in answered["messages"]] == ["Be brief.", "One?", "1", "Two?", "2"]
    assert answered["generated"] == [2, 4]
    assert answered["finish_reasons"] == ["stop", "stop"]


def test_what_the_source_said_in_the_assistants_place_is_gone() -> None:
    row = prompt("a", "One?")
    row["messages"][1]["content"] = "recorded"
    answered, _ = regenerate(row, said("new"))
    assert answered["messages"][1] == {"role": "assistant", "content": "new"}


def test_a_cut_answer_is_kept_and_marked() -> None:
    answered, _ = regenerate(prompt("a", "One?"), said("and so on", finish_reason="length"))
    assert (answered["status"], answered["finish_reasons"]) == ("success", ["length"])


def test_tokens_are_summed_and_ids_kept_per_turn() -> None:
    counts = {"prompt_tokens": 3, "completion_tokens": 2}
    row = prompt("a", "One?", "Two?")
    answered, _ = regenerate(row, said("1", token_ids=[5, 2], **counts), said("2", token_ids=[6, 2], **counts))
    assert answered["usage"] == {"prompt_tokens": 6, "completion_tokens": 4}
    assert answered["token_ids"] == [[5, 2], [6, 2]]


def test_token_ids_of_some_turns_only_are_left_out() -> None:
    answered, _ = regenerate(prompt("a", "One?", "Two?"), said("1", token_ids=[5]), said("2"))
    assert "token_ids" not in answered


def test_reasoning_is_kept_apart_and_not_sent_back() -> None:
    row = prompt("a", "One?", "Two?")
    answered, (_, second) = regenerate(row, said("1", reasoning="hm"), said("2"), thinking="on")
    assert answered["reasoning"] == {"1": "hm"}
    assert answered["thinking"] is True
    assert second.messages[1] == {"role": "assistant", "content": "1"}


def test_the_switches_of_the_template_are_sent_and_recorded() -> None:
    answered, (question,) = regenerate(prompt("a", "One?"), said("1"), chat_template_kwargs={"effort": "low"})
    assert answered["chat_template_kwargs"] == {"effort": "low"}
    sent = body(question, Sampling(chat_template_kwargs={"effort": "low"}), OTHER)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False, "effort": "low"}
    with pytest.raises(ValueError, match=r"set sampling\.thinking instead"):
        Sampling(chat_template_kwargs={"enable_thinking": True})


def test_recorded_results_follow_where_the_calls_match() -> None:
    same = said("", finish_reason="tool_calls", tool_calls=[call('{ "city":"Rome" }', identity="other")])
    answered, (first, second) = regenerate(with_tools(), same, said("No."))
    assert first.tools == WEATHER
    assert second.messages[1]["tool_calls"][0]["id"] == "call-1"  # the recorded result refers to it
    assert second.messages[2]["content"] == "sunny"
    assert answered["generated"] == [1, 3]
    assert answered["messages"][3] == {"role": "assistant", "content": "No."}
    assert answered["tools"] == WEATHER


@pytest.mark.parametrize(
    "answer",
    [
        said("", tool_calls=[call('{"city": "Paris"}')]),
        said("", tool_calls=[call('{"city": "Rome"}', name="forecast")]),
        said("I do not know."),
        said("", tool_calls=[call("not json")]),
    ],
)
def test_a_row_is_skipped_where_the_calls_differ(answer: Answer) -> None:
    answered, _ = regenerate(with_tools(), answer)
    assert (answered["status"], answered["error"]) == ("skipped", "tool calls differ from the recorded ones")
    assert answered["messages"] == with_tools()["messages"]
    assert answered["generated"] == []


def test_a_call_without_a_recorded_result_ends_only_a_last_turn() -> None:
    calls = said("", finish_reason="tool_calls", tool_calls=[call("{}")])
    last, _ = regenerate({**prompt("a", "One?"), "tools": WEATHER}, calls)
    assert last["messages"][1]["tool_calls"] == [call("{}")]
    middle, _ = regenerate({**prompt("a", "One?", "Two?"), "tools": WEATHER}, calls)
    assert middle["error"] == "calls tools without recorded results"


def test_seeds_are_the_same_at_every_run_and_differ_by_sample_turn_and_seed() -> None:
    seeds = [turn_seed(0, "a", 1), turn_seed(0, "a", 3), turn_seed(0, "b", 1), turn_seed(1, "a", 1)]
    assert seeds == [turn_seed(0, "a", 1), turn_seed(0, "a", 3), turn_seed(0, "b", 1), turn_seed(1, "a", 1)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_thinking_is_shared_out_by_sample() -> None:
    thinking = [is_thinking(Sampling(thinking=0.25), f"id-{number}") for number in range(4000)]
    assert 0.22 < sum(thinking) / 4000 < 0.28
    assert not any(is_thinking(Sampling(thinking="off"), f"id-{number}") for number in range(100))
    assert all(is_thinking(Sampling(thinking="on"), f"id-{number}") for number in range(100))
