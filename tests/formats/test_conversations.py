"""Users' shapes become one shape, with a slot wherever the target can answer; everything else is refused by name."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.errors import RowError
from deepspec.formats.conversations import parse_conversation, prompt_of, sample_id, user_texts

KEYS = ["messages", "conversations", "turns", "prompt", "role", "content", "from", "value", "tools", "tool_calls"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": st.text() | JSON}
    ),
    max_size=4,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text=""):
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
def test_known_shapes_become_one(row, messages):
    assert parse_conversation(row)["messages"] == messages


def test_tool_calls_stay_and_the_answer_to_their_result_is_a_slot():
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


def test_prompts_of_different_answers_are_one():
    asked, answered = {"prompt": "a"}, {"messages": [user("a"), {**assistant("b"), "reasoning_content": "c"}]}
    prompt = prompt_of(parse_conversation(answered))
    assert prompt == parse_conversation(asked)
    assert user_texts(prompt) == ["a"]


def test_sharegpt_function_calls_are_tool_calls():
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
    ],
)
def test_rows_that_cannot_be_used_say_why_and_where(row, reason):
    with pytest.raises(RowError, match=r"^mine\.jsonl:3: ") as caught:
        parse_conversation(row, "mine.jsonl", 3)
    assert caught.value.reason == reason


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3) | st.fixed_dictionaries({"messages": MESSAGES}))
def test_any_row_is_a_conversation_or_a_named_error(row):
    try:
        conversation = parse_conversation(row)
    except RowError:
        return
    roles = [message["role"] for message in conversation["messages"]]
    assert "user" in roles
    assert roles[-1] == "assistant"
    again = parse_conversation(json.loads(json.dumps(conversation)))
    assert again == conversation, "what was parsed parses to itself"
    assert sample_id(again) == sample_id(conversation)


def test_the_sample_id_is_frozen():
    """Published answers are keyed by it: another hash would orphan them all."""
    assert sample_id({"messages": [user("a"), assistant()]}) == "5c1aee59f7d801f9505421dd5a7a2358"


def test_the_sample_id_sees_content_and_not_the_shape_it_came_in():
    first = parse_conversation({"prompt": "a", "id": 1, "source": "x"})
    second = parse_conversation({"conversations": [{"from": "human", "value": "a"}]})
    assert sample_id(first) == sample_id(second) != sample_id(parse_conversation({"prompt": "b"}))


def test_reading_conversations_needs_no_torch():
    code = "import sys, deepspec.formats.conversations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
