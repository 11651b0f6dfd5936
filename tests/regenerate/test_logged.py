"""What a log says of an answer, under whatever name, becomes the fields of an answer row or a reason."""

from typing import Any

import pytest

from deepspec.errors import RowError
from deepspec.messages.conversations import parse_conversation
from deepspec.messages.finish import KEYS
from deepspec.messages.thinking import MARKERS
from deepspec.regenerate.logged import read_logged


def log(*texts: str | None, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)], **more}


def logged(row: dict[str, Any]) -> dict[str, Any]:
    return read_logged(row, parse_conversation(row)).fields


def refused(row: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as found:
        logged(row)
    return found.value


@pytest.mark.parametrize("key", KEYS)
def test_a_reason_is_read_on_the_row_the_message_and_the_response(key: str) -> None:
    two = log("a?", "b", "c?", "d")
    assert logged(two | {key: "max_tokens"})["finish_reasons"] == ["stop", "length"], "of the last turn"
    assert logged(two | {key: ["LENGTH", "end_turn"]})["finish_reasons"] == ["length", "stop"]
    assert logged(two | {key: [None, "length"]})["finish_reasons"] == ["stop", "length"]
    assert logged(two | {key: {"type": "length"}})["finish_reasons"] == ["stop", "length"]
    assert logged(two | {"choices": [{key: "length"}]})["finish_reasons"] == ["stop", "length"]
    assert logged(two | {"response": {"choices": [{key: "length"}]}})["finish_reasons"] == ["stop", "length"]
    assert logged(two | {"response": {"body": {"choices": [{key: "length"}]}}})["finish_reasons"] == ["stop", "length"]
    assert logged(two | {"meta_info": {key: {"type": "length"}}})["finish_reasons"] == ["stop", "length"]
    own = log("a?", "b", "c?", "d", **{key: "stop"})
    own["messages"][1][key] = own["messages"][3][key] = "length"
    assert logged(own)["finish_reasons"] == ["length", "length"], "a message knows it better than its row"


def test_no_reason_is_stop_and_known_as_none() -> None:
    row = log("a?", "b", finish_reason=None, choices=[], response="b", stop_reason="")
    found = read_logged(row, parse_conversation(row))
    assert (found.fields["finish_reasons"], found.tells_finish) == (["stop"], False)
    row = log("a?", "b", finish_reason="stop")
    assert read_logged(row, parse_conversation(row)).tells_finish


@pytest.mark.parametrize(
    ("more", "reason", "message"),
    [
        ({"finish_reason": "content_filter"}, "filtered", "content_filter"),
        ({"stop_reason": "refusal"}, "filtered", "refusal"),
        ({"finish_reason": "exploded"}, "unknown_finish", "'exploded'"),
        ({"finish_reason": 7}, "unknown_finish", "'7'"),
        ({"finish_reasons": ["stop", "stop"]}, "wrong_lengths", "2 finish reasons for 1 assistant turns"),
        ({"token_ids": [[1], [2]]}, "wrong_lengths", "2 lists of token ids for 1 assistant turns"),
        ({"token_ids": [1, 2]}, "bad_token_ids", "no list of token ids for each"),
        ({"token_ids": [["1"]]}, "bad_token_ids", ""),
        ({"token_ids": [[1.0]]}, "bad_token_ids", ""),
        ({"token_ids": [[True]]}, "bad_token_ids", ""),
        ({"token_ids": [[-1]]}, "bad_token_ids", ""),
        ({"token_ids": "12"}, "bad_token_ids", ""),
        ({"token_ids": {"0": [1]}}, "bad_token_ids", ""),
        ({"thinking": "I add."}, "bad_switches", "'thinking' is str"),
        ({"chat_template_kwargs": "x"}, "bad_switches", "'chat_template_kwargs' is str"),
        ({"generated": [0]}, "bad_generated", ""),
        ({"generated": "1"}, "bad_generated", ""),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(more: dict[str, Any], reason: str, message: str) -> None:
    error = refused(log("a?", "b") | more)
    assert error.reason == reason
    assert message in str(error)


def test_an_answer_of_reasoning_only_has_a_reason_of_its_own() -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        row = log("a?", None)
        row["messages"][1][key] = "The sum is 4."
        assert (refused(row).reason, str(refused(row))) == ("only_reasoning", "only reasoning, no content")
    row = log("a?", "")
    assert "no answer" in read_logged(row, parse_conversation(row)).skipped


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_reasoning_inside_the_content_means_thinking_and_stays_where_it_is(opening: str, closing: str) -> None:
    for content in (f"{opening}\nhm\n{closing}\n\n3.", f"hm\n{closing}\n\n3."):
        found = logged(log("a?", content))
        assert found["thinking"] is True
        assert found["messages"][1]["content"] == content
        assert "reasoning" not in found


def test_a_row_is_believed_what_it_says_of_thinking() -> None:
    block = "<think>hm</think>3."
    for said in ({"thinking": False}, {"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert logged(log("a?", block, **said))["thinking"] is False
        assert logged(log("a?", block, "b?", "c", **said))["thinking"] is False
    assert logged(log("a?", "3.", thinking=True))["thinking"] is True
    assert logged(log("a?", "3."))["thinking"] is False


def test_rows_of_which_some_answers_hold_their_reasoning_are_refused() -> None:
    error = refused(log("a?", "b", "c?", "<think>hm</think>d"))
    assert (error.reason, "1 of 2 answers hold their reasoning" in str(error)) == ("mixed_thinking", True)
    assert logged(log("a?", "b", "c?", "<think>hm</think>d", thinking=True))["thinking"] is True
    context = log("a?", "b", "c?", "<think>hm</think>d")
    context["messages"][1]["weight"] = 0
    assert logged(context)["thinking"] is True, "what is context only says nothing"


def test_other_switches_are_kept_and_thinking_is_none_of_them() -> None:
    row = log("a?", "b", chat_template_kwargs={"enable_thinking": True, "reasoning_effort": "low"})
    assert logged(row)["chat_template_kwargs"] == {"reasoning_effort": "low"}
    assert logged(row)["thinking"] is True


def test_a_row_of_our_own_artifact_is_adopted_as_it_is() -> None:
    messages = log("a?", "b", "c?", "d")["messages"]
    row = {
        "messages": messages, "status": "success", "finish_reasons": ["length"], "thinking": True, "generated": [3],
        "reasoning": {"3": "hm"}, "token_ids": [[5, 6]], "date": "2026-02-03",
    }  # fmt: skip
    assert logged(row) == {key: value for key, value in row.items() if key != "status"}


@pytest.mark.parametrize(
    ("told", "day"),
    [
        ("2024-03-05", "2024-03-05"), ("2024-03-05T23:59:59+09:00", "2024-03-05"), ("2024-03-05 10:00", "2024-03-05"),
        ("March 2024", None), ("05.03.2024", None), (20240305, None), (None, None), ("", None), (["2024-03-05"], None),
    ],
)  # fmt: skip
def test_a_day_in_iso_form_is_kept(told: object, day: str | None) -> None:
    assert logged(log("a?", "b", date=told)).get("date") == day


def test_calls_of_tools_are_answers() -> None:
    row = log("a?", "")
    row["messages"][1]["tool_calls"] = [{"name": "add", "arguments": {}}]
    found = logged(row | {"finish_reason": "tool_use"})
    assert (found["generated"], found["finish_reasons"]) == ([1], ["tool_calls"])
