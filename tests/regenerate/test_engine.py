"""What is sent, and what is read from an answer."""

import time
from email.utils import formatdate

import httpx
import openai
import pytest

from deepspec.placement import Endpoint
from deepspec.regenerate.engine import DIALECTS, OTHER, AskError, Engine, Question, body, label, retry_after
from deepspec.regenerate.spec import Sampling

QUESTION = Question(messages=[{"role": "user", "content": "Hi"}], tools=[], seed=7, thinking=True)


@pytest.fixture
def engine():
    return Engine(Endpoint(url="http://127.0.0.1:1/v1", model="tiny"), deadline=1)


def response(**message):
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", **message}}]}


def test_every_parameter_is_sent_under_its_own_name():
    sampling = Sampling(
        temperature=0.7, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.5, max_tokens=64
    )
    assert body(QUESTION, sampling, OTHER) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 7,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "max_tokens": 64,
        "chat_template_kwargs": {"enable_thinking": True},
    }


def test_a_parameter_that_is_none_is_not_sent():
    assert "min_p" not in body(QUESTION, Sampling(min_p=None), OTHER)


def test_llamacpp_calls_the_repetition_penalty_otherwise():
    sent = body(QUESTION, Sampling(repetition_penalty=1.1, presence_penalty=0.5), DIALECTS["llamacpp"])
    assert sent["repeat_penalty"] == 1.1
    assert sent["presence_penalty"] == 0.5
    assert "repetition_penalty" not in sent


def test_token_ids_are_read_where_each_engine_puts_them(engine):
    given = response(content="Hi") | {"usage": {"completion_tokens": 2}}
    given["choices"][0] |= {"token_ids": [1, 2], "logprobs": {"content": [{"id": 3}, {"id": 4}]}}
    assert engine.read(given).token_ids is None
    engine.dialect = DIALECTS["vllm"]
    assert engine.read(given).token_ids == [1, 2]
    engine.dialect = DIALECTS["sglang"]
    assert engine.read(given).token_ids == [1, 2]
    engine.dialect = DIALECTS["llamacpp"]
    assert engine.read(given).token_ids == [3, 4]
    given["choices"][0]["logprobs"] = {"content": [{"token": "a"}, {"token": "b"}]}  # an older llama.cpp
    assert engine.read(given).token_ids is None


def test_token_ids_that_are_not_all_of_them_are_left_out(engine):
    engine.dialect = DIALECTS["vllm"]
    given = response(content="🙂") | {"usage": {"completion_tokens": 4}}
    given["choices"][0]["token_ids"] = [1, 2]
    assert engine.read(given).token_ids is None


def test_reasoning_is_read_under_either_name(engine):
    assert engine.read(response(content="4", reasoning_content="2 + 2")).reasoning == "2 + 2"
    assert engine.read(response(content=None, reasoning="2 + 2")).reasoning == "2 + 2"


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
        response(content="", tool_calls=[{"function": {}}]),
        response(content="Hi") | {"usage": {"completion_tokens": float("inf")}},
    ],
)
def test_a_strange_answer_is_the_engines_fault(engine, strange):
    with pytest.raises(AskError) as caught:
        engine.read(strange)
    assert caught.value.fault == "engine"


@pytest.mark.parametrize(
    ("reason", "fault"), [("abort", "engine"), ("error", "engine"), (None, "engine"), ("content_filter", "row")]
)
def test_an_answer_that_the_target_did_not_end_is_none(engine, reason, fault):
    """vLLM and SGLang send 200 with a piece of an answer and `abort` when they shut down."""
    given = response(content="half an ans")
    given["choices"][0]["finish_reason"] = reason
    with pytest.raises(AskError, match="was ended by") as caught:
        engine.read(given)
    assert caught.value.fault == fault


@pytest.mark.parametrize("said", [{"content": "smile \ud83d"}, {"content": "", "tool_calls": [{"x": float("nan")}]}])
def test_what_no_file_can_hold_is_the_rows_fault(engine, said):
    with pytest.raises(AskError, match="no Unicode text") as caught:
        engine.read(response(**said))
    assert caught.value.fault == "row"


def test_json_without_end_is_the_engines_fault(engine):
    with pytest.raises(AskError, match="is not JSON"):
        engine._object(b"[" * 100_000)


def test_a_pause_is_told_in_seconds_or_as_a_date():
    def told(value):
        response = httpx.Response(429, headers={"retry-after": value}, request=httpx.Request("POST", "http://x"))
        return retry_after(openai.APIStatusError("busy", response=response, body=None))

    assert told("1.5") == 1.5
    assert told("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 50 < told(formatdate(time.time() + 60)) < 61
    assert told("soon") is None


def test_a_label_holds_no_password():
    assert label("https://user:secret@host:8000/v1") == "host:8000/v1"
