"""How each engine is spoken to: the same request in its own words, and where it puts the generated token ids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepspec.asking.question import Question
from deepspec.asking.sampling import Sampling


def _ids_beside_logprobs(choice: Mapping[str, Any]) -> Any:
    content = (choice.get("logprobs") or {}).get("content")
    return None if content is None else [token.get("id") for token in content]


def _ids_of_choice(choice: Mapping[str, Any]) -> Any:
    return choice.get("token_ids")


def _ids_of_reply(choice: Mapping[str, Any]) -> Any:
    """Return what SGLang calls otherwise in a chat than in a completion."""
    return choice.get("response_token_ids", choice.get("token_ids"))


def _no_ids(_: Mapping[str, Any]) -> Any:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """Where an engine differs from the others."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a sampling parameter -> the engine's."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields sent with every request, so that token ids come back."""
    may_give_states: bool = False
    """Whether it may have been started so that it writes a file for each request, which is named for that."""
    token_ids: Callable[[Mapping[str, Any]], Any] = _no_ids
    """Finds the generated token ids in a choice, where there are any."""


DIALECTS: Mapping[str, Dialect] = {
    "llamacpp": Dialect(
        names={"repetition_penalty": "repeat_penalty"},
        extra={"logprobs": True, "top_logprobs": 1},
        token_ids=_ids_beside_logprobs,
    ),
    "vllm": Dialect(extra={"return_token_ids": True}, token_ids=_ids_of_choice, may_give_states=True),
    "sglang": Dialect(extra={"return_token_ids": True}, token_ids=_ids_of_reply),
}
"""`owned_by` of a served model -> how its engine speaks."""

OTHER = Dialect()
"""An engine that is not in the table."""

_SENT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "max_tokens")


def body(question: Question, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Return a chat request without the model's name."""
    request = {
        "messages": question.messages,
        **_sampled(question, sampling, dialect),
        "chat_template_kwargs": {"enable_thinking": question.thinking, **(sampling.chat_template_kwargs or {})},
    }
    if question.tools:
        request["tools"] = question.tools
    return request


def ids_body(question: Question, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Return a request to complete the prompt's token ids, without the model's name."""
    return {"prompt": list(question.prompt_ids or ()), **_sampled(question, sampling, dialect)}


def _sampled(question: Question, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    settings = {name: getattr(sampling, name) for name in _SENT}
    sent = {dialect.names.get(name, name): value for name, value in settings.items() if value is not None}
    return {"seed": question.seed, **sent, **dialect.extra}
