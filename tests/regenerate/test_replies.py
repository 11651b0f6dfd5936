"""What is read from a reply: an answer, or whose fault it is that there is none."""

import contextlib
import copy
import functools
import json
import operator
import time
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepspec.asking.dialects import DIALECTS, OTHER, Dialect
from deepspec.asking.question import Answer
from deepspec.asking.replies import chat_answer, text_answer
from deepspec.engines.failures import AskError, UnknownFinishError
from deepspec.engines.wire import LONGEST_PAUSE, decoded, retry_after
from tests.given.some import some


def response(**message: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", **message}}]}


def read(reply: Any, dialect: Dialect = OTHER) -> Answer:
    return chat_answer(reply, dialect, "here")


def call(arguments: object, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}, **more}


def test_token_ids_are_read_where_each_engine_puts_them() -> None:
    given = response(content="Hi") | {"usage": {"completion_tokens": 2}}
    given["choices"][0] |= {"token_ids": [1, 2], "logprobs": {"content": [{"id": 3}, {"id": 4}]}}
    chatted = copy.deepcopy(given)
    chatted["choices"][0]["response_token_ids"] = [5, 6]
    del chatted["choices"][0]["token_ids"]
    assert read(given).token_ids is None
    assert read(given, DIALECTS["vllm"]).token_ids == [1, 2]
    assert read(given, DIALECTS["sglang"]).token_ids == [1, 2]  # as SGLang has it in a completion; in a chat, below
    assert read(chatted, DIALECTS["sglang"]).token_ids == [5, 6]
    assert read(given, DIALECTS["llamacpp"]).token_ids == [3, 4]
    given["choices"][0]["logprobs"] = {"content": [{"token": "a"}, {"token": "b"}]}  # an older llama.cpp
    assert read(given, DIALECTS["llamacpp"]).token_ids is None


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, -4], [1, 2, 3, True], [1, 2, 3, 4.0], [1, 2, 3, 1 << 40]])
def test_token_ids_that_are_not_all_of_them_or_none_at_all_are_left_out(ids: list[Any]) -> None:
    given = response(content="🙂") | {"usage": {"completion_tokens": 4}}
    given["choices"][0]["token_ids"] = ids
    assert read(given, DIALECTS["vllm"]).token_ids is None


def test_reasoning_is_read_under_either_name() -> None:
    assert read(response(content="4", reasoning_content="2 + 2")).reasoning == "2 + 2"
    assert read(response(content=None, reasoning="2 + 2")).reasoning == "2 + 2"


@pytest.mark.parametrize(
    ("told", "finish"),
    [("eos_token", "stop"), ("END_TURN", "stop"), ("max-tokens", "length"), ("function_call", "tool_calls")],
)
def test_a_reason_is_kept_under_its_one_name(told: str, finish: str) -> None:
    given = response(content="Hi")
    given["choices"][0]["finish_reason"] = told
    assert read(given).finish_reason == finish


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2.0}, (7, 2)),
        ({"prompt_tokens": "7", "completion_tokens": None}, (0, 0)),
        ({"prompt_tokens": -7, "completion_tokens": float("inf")}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": 10**400}, (0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": [2]}, (0, 0)),
        ([7, 2], (0, 0)),
        (None, (0, 0)),
    ],
)
def test_counts_that_are_none_are_no_counts_and_cost_no_answer(
    usage: dict[str, Any] | list[int] | None, counts: tuple[int, int]
) -> None:
    answer = read(response(content="Hi") | {"usage": usage})
    assert (answer.prompt_tokens, answer.completion_tokens) == counts


def test_calls_are_kept_in_one_shape_whatever_the_engine_gives() -> None:
    assert read(response(content=None, tool_calls=[call('{"a": 1}', id="x", index=0)])).tool_calls == [
        call('{"a": 1}', id="x")
    ]
    assert read(response(content=None, tool_calls=[call({"a": "ü"})])).tool_calls == [call('{"a": "ü"}')]
    assert read(response(content="", tool_calls=[call(None)])).tool_calls == [call("{}")]
    assert read(response(function_call={"name": "weather", "arguments": "{}"})).tool_calls == [call("{}")]


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [{}]},
        {"choices": ["text"]},
        response(content=None),
        response(content=["part"]),
        response(content="Hi", reasoning={"steps": []}),
        response(content="", tool_calls=[{"function": {}}]),
        response(content="", tool_calls=[call(["city", "Bern"])]),
        response(content="", tool_calls="weather"),
    ],
)
def test_a_strange_answer_is_tried_elsewhere_and_counts_as_the_rows_in_the_end(strange: dict[str, Any]) -> None:
    with pytest.raises(AskError) as caught:
        read(strange)
    assert (caught.value.fault, caught.value.can_pass, caught.value.reason) == ("odd", True, "odd_answer")


@pytest.mark.parametrize("told", ["abort", "error", "", None, 7, ["stop"]])
def test_an_answer_that_ended_for_an_unknown_reason_is_none_and_names_it(told: object) -> None:
    """vLLM and SGLang send 200 with a piece of an answer and `abort` when they shut down."""
    given = response(content="half an ans")
    given["choices"][0]["finish_reason"] = told
    with pytest.raises(UnknownFinishError, match="was ended by") as caught:
        read(given)
    assert caught.value.told == repr(told)
    assert (caught.value.fault, caught.value.reason) == ("engine", "")


def test_a_filtered_answer_is_the_rows_fault() -> None:
    given = response(content="half an ans")
    given["choices"][0]["finish_reason"] = "content_filter"
    with pytest.raises(AskError, match="was ended by") as caught:
        read(given)
    assert (caught.value.fault, caught.value.reason) == ("row", "filtered")


@pytest.mark.parametrize("said", [{"content": "smile \ud83d"}, {"content": "", "tool_calls": [{"x": float("nan")}]}])
def test_what_no_file_can_hold_is_the_rows_fault(said: dict[str, Any]) -> None:
    with pytest.raises(AskError, match="no Unicode text") as caught:
        read(response(**said))
    assert (caught.value.fault, caught.value.reason) == ("row", "not_text")


def test_the_answer_to_token_ids_is_its_text_as_it_is() -> None:
    given: dict[str, Any] = {
        "choices": [{"text": "<tool_call>{}</tool_call>", "finish_reason": "eos", "token_ids": [4, 5]}]
    }
    given["usage"] = {"prompt_tokens": 3, "completion_tokens": 2}
    answer = text_answer(given, DIALECTS["vllm"], "here")
    assert (answer.content, answer.finish_reason, answer.tool_calls) == ("<tool_call>{}</tool_call>", "stop", [])
    assert (answer.token_ids, answer.prompt_tokens) == ([4, 5], 3)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"", b"[1]", b"null", b"<html>", b"1" * 5000, b'{"a": \xff}'])
def test_what_is_no_json_object_is_odd(raw: bytes) -> None:
    with pytest.raises(AskError) as caught:
        decoded(raw)
    assert caught.value.fault == "odd"


def test_what_an_engine_says_is_kept_as_text_and_cut() -> None:
    error = AskError("[/docs] \x1b[31m half \ud83d " + "x" * 1000, "engine")
    assert str(error).startswith("[/docs] \x1b[31m half ? xxx")
    assert len(str(error)) == 300


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1.5", 1.5),
        ("86400", 86400.0),
        ("-5", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("1e300", LONGEST_PAUSE),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_a_pause_is_told_in_seconds_or_as_a_date(told: str, seconds: float | None) -> None:
    assert retry_after(httpx.Headers({"retry-after": told})) == seconds


def test_a_date_is_read_by_the_clock_of_the_endpoint() -> None:
    told = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:00:00 GMT"}
    assert retry_after(httpx.Headers(told)) == 28 * 60
    assert 50 < some(retry_after(httpx.Headers({"retry-after": formatdate(time.time() + 60)}))) < 61
    assert retry_after(httpx.Headers({"retry-after": "9", "retry-after-ms": "250"})) == 0.25


text = st.text("ab1 .\n\x00🙂\ud83d", max_size=5)  # a lone half of a pair, as JSON can spell it
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | text
    | st.sampled_from(["stop", "length", "tool_calls", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


calls = st.lists(st.builds(call, text), max_size=1)
whole = st.fixed_dictionaries(
    {
        "content": text,
        "reasoning": st.none() | text,
        "tool_calls": calls,
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "eos"]),
        "count": st.integers(0, 2),
    }
)
PATHS = [
    ("usage",),
    ("choices",),
    ("error",),
    *(("usage", name) for name in ("prompt_tokens", "completion_tokens")),
    *(("choices", 0, name) for name in ("message", "text", "finish_reason", "token_ids", "logprobs")),
    *(("choices", 0, "message", name) for name in ("content", "reasoning", "tool_calls", "function_call")),
    *(("choices", 0, "message", "tool_calls", 0, name) for name in ("id", "function")),
    *(("choices", 0, "message", "tool_calls", 0, "function", name) for name in ("name", "arguments")),
    *(("choices", 0, "logprobs", "content", 0), ("choices", 0, "token_ids", 0)),
]
"""Where a reply may hold anything instead of what it should."""


def damaged(told: dict[str, Any], damage: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return a reply in which some places hold something else."""
    count = told["count"]
    message = {name: told[name] for name in ("content", "reasoning", "tool_calls")}
    ids = {"token_ids": [5] * count, "logprobs": {"content": [{"id": 5}] * count}}
    choice = {"message": message, "text": told["content"], "finish_reason": told["finish_reason"], **ids}
    reply: Any = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": count}}
    reply = copy.deepcopy(reply)
    for path, value in damage:
        with contextlib.suppress(LookupError, TypeError, AttributeError):  # the place is gone
            functools.reduce(operator.getitem, path[:-1], reply)[path[-1]] = value
    broken: dict[str, Any] = reply
    return broken


replies = st.builds(damaged, whole, st.lists(st.tuples(st.sampled_from(PATHS), anything), max_size=2))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reply=replies, dialect=st.sampled_from([OTHER, *DIALECTS.values()]))
@example(reply=response(content="Hi") | {"usage": {"completion_tokens": 10**400}}, dialect=OTHER)
def test_whatever_an_engine_replies_is_an_answer_that_a_file_can_hold_or_an_ask_error(
    reply: dict[str, Any], dialect: Dialect
) -> None:
    for read_as in (chat_answer, text_answer):
        try:
            answer = read_as(reply, dialect, "here")
        except AskError as error:
            str(error).encode()
            continue
        held = [answer.content, answer.reasoning, answer.tool_calls, answer.token_ids]
        json.dumps(held, ensure_ascii=False, allow_nan=False).encode()
        assert isinstance(answer.content, str)
        assert isinstance(answer.reasoning, str | None)
        assert answer.finish_reason in ("stop", "length", "tool_calls")
        assert min(answer.prompt_tokens, answer.completion_tokens) >= 0
        assert max(answer.prompt_tokens, answer.completion_tokens) < 1 << 31
        assert answer.token_ids is None or len(answer.token_ids) == answer.completion_tokens


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date"]),
        st.text("0123456789.-+eE:, adfinORWGTMct", max_size=30),
    )
)
def test_whatever_an_endpoint_says_of_its_pause_is_seconds_or_nothing(headers: dict[str, str]) -> None:
    seconds = retry_after(headers)
    assert seconds is None or 0 <= seconds <= LONGEST_PAUSE
