"""Users' shapes become one shape, with a slot wherever the target can answer; everything else is refused by name."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from deepspec.errors import RowError
from deepspec.messages.content import placeholder
from deepspec.messages.conversations import parse_conversation, prompt_of, sample_id, user_texts
from tests.given import wild


def user(text: object) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: object = "") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "a"}, [user("a"), assistant()]),
        ({"turns": ["a", "b"]}, [user("a"), assistant(), user("b"), assistant()]),
        ({"messages": [user("a")]}, [user("a"), assistant()]),
        ({"messages": [user("a"), assistant("b")]}, [user("a"), assistant("b")]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [user("a"), assistant("b")],
        ),
        ({"system": "s", "prompt": "a"}, [{"role": "system", "content": "s"}, user("a"), assistant()]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, [user("a"), assistant()]),
    ],
)
def test_known_shapes_become_one(row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert parse_conversation(row)["messages"] == messages


def test_tool_calls_stay_and_the_answer_to_their_result_is_a_slot() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    row = {
        "messages": [
            user("1+1?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
    }
    conversation = parse_conversation(row)
    assert conversation["tools"] == row["tools"]
    assert conversation["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert conversation["messages"][2]["tool_call_id"] == "c1"
    assert conversation["messages"][3] == assistant()
    assert prompt_of(conversation) == conversation


def test_prompts_of_different_answers_are_one() -> None:
    asked, answered = {"prompt": "a"}, {"messages": [user("a"), {**assistant("b"), "reasoning_content": "c"}]}
    prompt = prompt_of(parse_conversation(answered))
    assert prompt == parse_conversation(asked)
    assert user_texts(prompt) == ["a"]


def test_sharegpt_function_calls_are_tool_calls() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "two"},
        ],
        "tools": '[{"name": "add"}]',
    }
    conversation = parse_conversation(row)
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert conversation["messages"][1]["tool_calls"][0]["function"]["name"] == "add"
    assert conversation["tools"] == [{"name": "add"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "unknown_shape"),
        ({"messages": "a"}, "unknown_shape"),
        ({"messages": ["a"]}, "unknown_shape"),
        ({"messages": []}, "empty_conversation"),
        ({"turns": []}, "empty_conversation"),
        ({"messages": [user(" ")]}, "empty_message"),
        ({"messages": [{"role": "owner", "content": "a"}]}, "wrong_roles"),
        ({"conversations": [{"from": "them", "value": "a"}]}, "wrong_roles"),
        ({"messages": [assistant("a"), user("b")]}, "wrong_roles"),
        ({"messages": [user("a"), user("b")]}, "wrong_roles"),
        ({"messages": [user("a"), {"role": "system", "content": "late"}]}, "wrong_roles"),
        ({"messages": [user("a"), assistant("b"), {"role": "tool", "content": "2"}]}, "wrong_roles"),
        ({"messages": [{"role": "system", "content": "s"}]}, "no_turn"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text"),
        ({"prompt": 3}, "not_text"),
        ({"prompt": "\ud800"}, "not_text"),
        ({"prompt": "a", "tools": "no"}, "bad_tools"),
        ({"prompt": "a", "tools": ["no"]}, "bad_tools"),
        ({"prompt": "a", "tools": float("nan")}, "bad_tools"),
        ({"prompt": "a", "tools": [{"default": float("nan")}]}, "bad_tools"),
        ({"prompt": "a", "tools": '[{"default": -Infinity}]'}, "bad_tools"),
        ({"prompt": "a", "tools": [{"default": b"x"}]}, "bad_tools"),
        ({"prompt": "a", "tools": [{"name": "\ud800"}]}, "not_text"),
        ({"prompt": "a", "system": float("nan")}, "not_text"),
        (
            {"messages": [user("a"), {**assistant(), "tool_calls": [{"name": "f", "arguments": [float("inf")]}]}]},
            "bad_tools",
        ),
        ({"messages": [user("a"), {**assistant("b"), "weight": 0.5}]}, "bad_weight"),
        ({"messages": [user("a"), {**assistant("b"), "weight": "0"}]}, "bad_weight"),
        ({"messages": [user("a"), {**assistant("b"), "weight": float("nan")}]}, "bad_weight"),
        ({"messages": '[{"role": "user", "content": "a"}]'}, "unknown_shape"),
        ({"conversation": [user("a")]}, "unknown_shape"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "wrong_roles"),
        ({"messages": [{"role": "[/INST]", "content": "a"}]}, "wrong_roles"),
    ],
)
def test_rows_that_cannot_be_used_say_why_and_where(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=r"^mine\.jsonl:3: ") as caught:
        parse_conversation(row, "mine.jsonl", 3)
    assert caught.value.reason == reason


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(wild.ROWS | wild.ALMOST)
@example(wild.KNOWN[0])
@example(wild.KNOWN[4])
def test_any_row_is_a_conversation_or_a_named_error(row: Any) -> None:
    refused: RowError | None = None
    try:
        conversation = parse_conversation(row)
    except RowError as error:
        refused = error
    if refused is not None:
        assert refused.reason != "unreadable", f"nobody foresaw {refused}"
        return
    roles = [message["role"] for message in conversation["messages"]]
    assert "user" in roles
    assert roles[-1] == "assistant"
    again = parse_conversation(json.loads(json.dumps(conversation, allow_nan=False)))
    assert again == conversation, "what was parsed parses to itself"
    prompt = prompt_of(conversation)
    assert sample_id(prompt_of(again)) == sample_id(prompt)
    assert sample_id(prompt_of(prompt)) == sample_id(prompt)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"x": 1}
    for _ in range(depth):
        value = {"x": [value]}
    return value


@pytest.mark.parametrize("depth", [60, 400, 5000])
def test_tools_that_nest_too_deep_are_refused(depth: int) -> None:
    with pytest.raises(RowError) as found:
        parse_conversation({"prompt": "a", "tools": [nested(depth)]})
    assert found.value.reason == "bad_tools"
    called = {**assistant(), "tool_calls": [{"name": "f", "arguments": nested(5000)}]}
    with pytest.raises(RowError, match="cannot be written as JSON"):
        parse_conversation({"messages": [user("a"), called]})
    assert parse_conversation({"prompt": "a", "tools": [nested(40)]})["tools"] == [nested(40)]


def test_a_message_of_an_error_is_short_however_long_the_row() -> None:
    rows: list[dict[str, Any]] = [{"messages": [{"role": "x" * 100_000, "content": "a"}]}, {"k" * 100_000: 1}]
    for row in rows:
        with pytest.raises(RowError) as found:
            parse_conversation(row)
        assert len(str(found.value)) < 500


@pytest.mark.parametrize("key", ["image", "images", "video", "videos", "audio", "audios", "image_url", "image_path"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": "x"}, [{"path": "a.png"}], True])
def test_a_row_or_message_that_brings_what_is_no_text_is_refused(key: str, value: object) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", key: value}, {"messages": [{**user("a"), key: value}]}]
    rows.append({"conversations": [{"from": "human", "value": "a", key: value}]})
    rows.append({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", key: value}]}]})
    for row in rows:
        with pytest.raises(RowError, match="only text can be used") as found:
            parse_conversation(row)
        assert found.value.reason == "not_text"


@pytest.mark.parametrize("value", [None, "", [], {}, [None], {"bytes": None, "path": None}, float("nan"), False])
def test_an_empty_column_for_images_is_none(value: object) -> None:
    assert parse_conversation({"prompt": "a", "image": value, "videos": value}) == parse_conversation({"prompt": "a"})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}}, {"type": "image_url", "text": "a"},
        {"type": "image", "text": ""},
        {"type": "input_audio", "text": "a"}, {"type": "thinking", "text": "a"}, {"type": "tool_use", "text": "a"},
        {"type": ["text"], "text": "a"}, {"type": "text"}, {"type": "text", "text": 3}, "a", 3, None,
    ],
)  # fmt: skip
def test_a_part_that_is_no_text_is_refused(part: object) -> None:
    with pytest.raises(RowError) as found:
        parse_conversation({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]})
    assert found.value.reason == "not_text"


def test_parts_of_text_are_joined() -> None:
    parts = [{"text": "a"}, {"type": "text", "text": "b"}, {"type": "input_text", "text": "c"}]
    row = {"messages": [{"role": "user", "content": [*parts, {"type": "output_text", "text": "d", "image": None}]}]}
    assert user_texts(parse_conversation(row)) == ["abcd"]


@pytest.mark.parametrize(
    "text",
    [
        "<image>\nWhat colour is the door?", "What is this?\n<image>", "What is this? <image>", "<image>", "<video>\na",
        "  <audio> a", "a\n <image> \nb", "a\n<image><image>\nb", "<image_1> and <image_2>", "<|image_pad|>a",
        "<|image_1|>\na", "<|vision_start|><|image_pad|><|vision_end|>a", "<IMAGE>\na", "<start_of_image>a",
        "<image_soft_token>a", "a <|AUDIO|>", "<img>\na", "<Image 1>\na",
    ],
)  # fmt: skip
def test_a_placeholder_in_its_place_is_no_text(text: str) -> None:
    with pytest.raises(RowError, match="in the place of what is no text"):
        parse_conversation({"prompt": text})


@pytest.mark.parametrize(
    "text",
    [
        "How do I put an <image> tag into a feed?", "Mend this:\n<video>\n<source src=a>\n</video>",
        "<image>\n<url>x</url>\n</image>\nWhat is it?", "What does `<image>` do?", "a < image > b", "<imagery>",
        "a\n<div>\nb", "<|im_start|>", "the image", "<audio-player>\na",
    ],
)  # fmt: skip
def test_text_that_speaks_of_a_tag_is_text(text: str) -> None:
    assert placeholder(text) == ""
    assert user_texts(parse_conversation({"prompt": text})) == [text]


def test_a_system_message_without_content_is_none() -> None:
    plain = parse_conversation({"prompt": "a"})
    nothing: list[object] = [None, []]
    for content in nothing:
        assert parse_conversation({"messages": [{"role": "system", "content": content}, user("a")]}) == plain
    assert parse_conversation({"messages": [{"role": "system"}, user("a")]}) == plain
    for value in ("", " ", None):
        turns = [{"from": "system", "value": value}, {"from": "human", "value": "a"}]
        assert parse_conversation({"system": "", "conversations": turns}) == plain


def test_an_explicit_empty_system_message_stays() -> None:
    """Engines render it, in the place of the template's default system prompt."""
    empty = {"role": "system", "content": ""}
    assert parse_conversation({"messages": [empty, user("a")]})["messages"] == [empty, user("a"), assistant()]


@pytest.mark.parametrize("said", [{"weight": 0}, {"weight": 0.0}, {"weight": False}, {"train": False}, {"loss": False}])
def test_an_assistant_turn_of_weight_zero_is_told_and_leaves_the_prompt_as_it_was(said: dict[str, Any]) -> None:
    row = {"messages": [user("a"), {**assistant("b"), **said}, user("c"), {**assistant("d"), "weight": 1}]}
    conversation = parse_conversation(row)
    assert [message.get("weight") for message in conversation["messages"]] == [None, 0, None, None]
    plain = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    assert sample_id(prompt_of(conversation)) == sample_id(prompt_of(parse_conversation(plain)))


@pytest.mark.parametrize("said", [{"weight": 1}, {"weight": 1.0}, {"weight": None}, {"train": True}, {"loss": 0.0}, {}])
def test_any_other_turn_is_as_it_was(said: dict[str, Any]) -> None:
    assert parse_conversation({"messages": [user("a"), {**assistant("b"), **said}]})["messages"][1] == assistant("b")


def test_what_a_log_tells_of_a_call_does_not_change_the_prompt() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}
    result, told = {"role": "tool", "content": "2"}, {"weight": 0, "finish_reason": "tool_calls"}
    plain, logged = ({"messages": [user("a"), one, result]} for one in (call, call | told))
    assert prompt_of(parse_conversation(logged)) == prompt_of(parse_conversation(plain))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_known_by_its_names(key: str) -> None:
    row = {"messages": [user("a"), {**assistant("b"), key: "hm"}]}
    assert parse_conversation(row)["messages"][1] == {**assistant("b"), "reasoning_content": "hm"}
    row = {"messages": [{**user("a"), key: True}, {**assistant("b"), key: {"x": 1}}]}
    assert parse_conversation(row)["messages"][1] == assistant("b")


def test_the_shape_is_the_first_key_that_holds_something() -> None:
    row = {"messages": None, "conversations": [{"from": "human", "value": "a"}], "prompt": "b"}
    assert user_texts(parse_conversation(row)) == ["a"]


def test_the_sample_id_is_frozen() -> None:
    """Published answers are keyed by it: another hash would orphan them all."""
    conversation: Any = {"messages": [user("a"), assistant()]}
    assert sample_id(conversation) == "5c1aee59f7d801f9505421dd5a7a2358"


def test_the_sample_id_sees_content_and_not_the_shape_it_came_in() -> None:
    first = parse_conversation({"prompt": "a", "id": 1, "source": "x"})
    second = parse_conversation({"conversations": [{"from": "human", "value": "a"}]})
    assert sample_id(first) == sample_id(second) != sample_id(parse_conversation({"prompt": "b"}))


def test_reading_conversations_needs_no_torch() -> None:
    code = "import sys, deepspec.messages.conversations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
