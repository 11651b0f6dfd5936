"""What is sent."""

from deepspec.asking.dialects import DIALECTS, OTHER, body, ids_body
from deepspec.asking.question import Question
from deepspec.asking.sampling import Sampling
from deepspec.engines.client import label

QUESTION = Question(messages=[{"role": "user", "content": "Hi"}], tools=[], seed=7, thinking=True)


def test_every_parameter_is_sent_under_its_own_name() -> None:
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


def test_a_parameter_that_is_none_is_not_sent() -> None:
    assert "min_p" not in body(QUESTION, Sampling(min_p=None), OTHER)


def test_llamacpp_calls_the_repetition_penalty_otherwise() -> None:
    sent = body(QUESTION, Sampling(repetition_penalty=1.1, presence_penalty=0.5), DIALECTS["llamacpp"])
    assert sent["repeat_penalty"] == 1.1
    assert sent["presence_penalty"] == 0.5
    assert "repetition_penalty" not in sent


def test_token_ids_are_sent_with_the_same_parameters_and_without_what_a_template_reads() -> None:
    question = Question(messages=[], tools=[{}], seed=7, thinking=True, prompt_ids=[5, 6])
    sent = ids_body(question, Sampling(max_tokens=64, chat_template_kwargs={"effort": "low"}), DIALECTS["vllm"])
    assert sent["prompt"] == [5, 6]
    assert (sent["seed"], sent["max_tokens"], sent["return_token_ids"]) == (7, 64, True)
    assert not sent.keys() & {"messages", "tools", "chat_template_kwargs"}
    sent = ids_body(question, Sampling(repetition_penalty=1.1, min_p=None), DIALECTS["llamacpp"])
    assert sent["repeat_penalty"] == 1.1
    assert "min_p" not in sent


def test_a_label_holds_no_password() -> None:
    assert label("https://user:secret@host:8000/v1") == "host:8000/v1"
