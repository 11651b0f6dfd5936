"""One endpoint: what is sent in its engine's own words, and what an answer from it holds."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from deepspec.errors import DeepSpecError
from deepspec.formats.conversations import Message
from deepspec.placement import Endpoint
from deepspec.regenerate.spec import Sampling

Fault = Literal["row", "engine", "busy", "late"]
"""What a failure says: this request cannot be answered, the endpoint is sick, it has too much to do (and said so), or
it did not answer in time (either of the two)."""

REFUSED = frozenset({400, 413, 422})
"""HTTP statuses that say that the request itself is wrong: asking again gives the same."""
FINISHED = frozenset({"stop", "length", "tool_calls", "function_call"})
"""Reasons with which the target itself ends an answer. Others, `abort` of an engine that shuts down say, leave a piece
of an answer, which must not be trained on as a whole one."""
FILTERED = "content_filter"
"""Finish reason of an answer that a service withholds: asking again gives the same."""
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
LONGEST_REASON = 300


class AskError(DeepSpecError):
    """A question without an answer. Stays inside this room: it becomes a retry or the `error` of a row."""

    def __init__(self, reason: str, fault: Fault, retry_after: float | None = None) -> None:
        """Say why, whose fault it is, and how many seconds the endpoint asked to be left alone."""
        super().__init__(reason)
        self.fault = fault
        self.retry_after = retry_after

    @property
    def can_pass(self) -> bool:
        """Return whether the same question may be answered later, or elsewhere."""
        return self.fault != "row"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One turn that the target should answer."""

    messages: list[Message]
    """The conversation so far."""
    tools: list[dict[str, Any]]
    seed: int
    thinking: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the target said in one turn."""

    content: str
    finish_reason: str
    """As the engine gave it: "stop", "length", "tool_calls" …"""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] | None = None
    """Generated tokens; None where the engine does not give them, or fewer than it counted (llama.cpp reports one id
    for a character of several tokens)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    endpoint: str = ""


def _ids_beside_logprobs(choice: Mapping[str, Any]) -> Any:
    content = (choice.get("logprobs") or {}).get("content")
    return None if content is None else [token.get("id") for token in content]


def _ids_of_choice(choice: Mapping[str, Any]) -> Any:
    return choice.get("token_ids")


def _no_ids(_: Mapping[str, Any]) -> Any:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """Where an engine differs from the others."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a sampling parameter -> the engine's."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields sent with every request, so that token ids come back."""
    token_ids: Callable[[Mapping[str, Any]], Any] = _no_ids
    """Finds the generated token ids in a choice, where there are any."""


DIALECTS: Mapping[str, Dialect] = {
    "llamacpp": Dialect(
        names={"repetition_penalty": "repeat_penalty"},
        extra={"logprobs": True, "top_logprobs": 1},
        token_ids=_ids_beside_logprobs,
    ),
    "vllm": Dialect(extra={"return_token_ids": True}, token_ids=_ids_of_choice),
    "sglang": Dialect(extra={"return_token_ids": True}, token_ids=_ids_of_choice),
}
"""`owned_by` of a served model -> how its engine speaks."""

OTHER = Dialect()
"""An engine that is not in the table."""

_SENT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "max_tokens")


def body(question: Question, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """Return a chat request without the model's name."""
    settings = {name: getattr(sampling, name) for name in _SENT}
    request: dict[str, Any] = {
        "messages": question.messages,
        "seed": question.seed,
        **{dialect.names.get(name, name): value for name, value in settings.items() if value is not None},
        "chat_template_kwargs": {"enable_thinking": question.thinking, **(sampling.chat_template_kwargs or {})},
        **dialect.extra,
    }
    if question.tools:
        request["tools"] = question.tools
    return request


def label(url: str) -> str:
    """Return an endpoint's name for rows, tables and messages: host, port and path, never user or password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path}"


class Engine:
    """A client of one endpoint. Use as an asynchronous context manager.

    Args:
        endpoint: where it is and which model it serves.
        deadline: seconds after which a request is given up.
    """

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        """Make the client; nothing is sent yet."""
        self.model = endpoint.model
        self.label = label(endpoint.url)
        self.dialect = OTHER
        self._key = endpoint.api_key.get_secret_value() if endpoint.api_key else ""
        self._deadline = deadline
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._key or "none",  # the client wants one; engines without keys ignore it
            max_retries=0,
            timeout=openai.Timeout(deadline, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAioHttpClient(),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, question: Question, sampling: Sampling) -> Answer:
        """Return the target's answer to one question.

        Raises:
            AskError: there is none; says whose fault it is.
        """
        return self.read(await self.complete(body(question, sampling, self.dialect)))

    async def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one chat request and return the decoded response.

        Raises:
            AskError: no response, or not one JSON object.
        """
        extra = {key: value for key, value in request.items() if key != "messages"}
        call = self._client.chat.completions.with_raw_response.create
        raw = await self._call(call(model=self.model, messages=request["messages"], extra_body=extra), self._deadline)
        return self._object(raw)

    async def served_models(self) -> dict[str, str]:
        """Return what the endpoint serves: name of a model -> `owned_by`, which names the engine.

        Raises:
            AskError: it does not answer, or not with a list of models.
        """
        raw = await self._call(self._client.models.with_raw_response.list(), PROBE_SECONDS)
        try:
            return {model["id"]: str(model.get("owned_by", "")) for model in self._object(raw)["data"]}
        except (KeyError, TypeError, AttributeError):
            raise AskError("/models is not a list of models", "engine") from None

    def read(self, response: Mapping[str, Any]) -> Answer:
        """Return the answer in a decoded response.

        Raises:
            AskError: it holds none: no choice, no message, neither content nor tool calls nor reasoning; or the
                target did not end it.
        """
        try:
            choice = response["choices"][0]
            message = choice["message"]
            _check_storable(message)
            content, calls = message.get("content"), _tool_calls(message.get("tool_calls") or [])
            reasoning = message.get("reasoning_content") or message.get("reasoning")
            if content is None and not calls and reasoning is None:
                raise AskError("the answer's content is null", "engine")
            usage = response.get("usage") or {}
            completion_tokens = int(usage.get("completion_tokens") or 0)
            return Answer(
                content=_text(content),
                finish_reason=_finish_reason(choice.get("finish_reason")),
                reasoning=reasoning,
                tool_calls=calls,
                token_ids=_all_ids(self.dialect.token_ids(choice), completion_tokens),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=completion_tokens,
                endpoint=self.label,
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise AskError(f"not a chat answer: {type(error).__name__} {error}", "engine") from None

    async def _call(self, call: Any, seconds: float) -> bytes:
        """Await a request; errors lose their chain, since it can hold the key."""
        try:
            async with asyncio.timeout(seconds):
                response = await call
                return bytes(response.content)
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":  # a refused connection comes as one, too
                raise AskError(self._clean(str(error.__cause__)), "engine") from None
            raise AskError(f"no answer within {seconds:g} s", "late") from None
        except TimeoutError:
            raise AskError(f"no answer within {seconds:g} s", "late") from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except openai.APIError as error:
            raise AskError(self._clean(f"{type(error).__name__}: {error}"), "engine") from None

    def _status_error(self, error: openai.APIStatusError) -> AskError:
        reason = self._clean(error.message)
        if error.status_code in REFUSED:
            return AskError(reason, "row")
        return AskError(reason, "busy" if error.status_code == 429 else "engine", retry_after(error))

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise AskError(f"the answer is not JSON: {error}", "engine") from None
        if not isinstance(value, dict):
            raise AskError(f"the answer is {type(value).__name__}, wanted a JSON object", "engine")
        return value

    def _clean(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_REASON]


def _check_storable(message: Any) -> None:
    """Refuse what cannot be written as JSON text: half of a surrogate pair, or a number that is none.

    Raises:
        AskError: the target said so, and will again.
    """
    try:
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise AskError(f"the answer is no Unicode text: {error}", "row") from None


def _finish_reason(reason: Any) -> str:
    if reason in FINISHED:
        return str(reason)
    raise AskError(f"the answer was ended by {reason!r}", "row" if reason == FILTERED else "engine")


def _all_ids(ids: Any, wanted: int) -> list[int] | None:
    """Return token ids where they are all that were counted."""
    if not isinstance(ids, list) or len(ids) != wanted or not all(isinstance(token, int) for token in ids):
        return None
    return ids or None


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    if not all(isinstance(call["function"]["name"], str) for call in calls):
        raise TypeError("a tool call without a function's name")
    return list(calls)


def _text(content: Any) -> str:
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content


def retry_after(error: openai.APIStatusError) -> float | None:
    """Return the seconds that an endpoint asks to be left alone: it says how many, or until when."""
    told = error.response.headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        date = parsedate_tz(told)
        seconds = mktime_tz(date) - time.time() if date else math.nan
    return max(0.0, seconds) if math.isfinite(seconds) else None
