"""What an engine's reply holds: an answer, or the reason why it is none; whatever it says, nothing else comes out."""

import json
from collections.abc import Mapping
from typing import Any

from deepspec.asking.dialects import Dialect
from deepspec.asking.question import Answer, Response
from deepspec.engines.failures import AskError, UnknownFinishError
from deepspec.messages.finish import FILTERED, LENGTH, finish_of

LARGEST_COUNT = 1 << 31
"""Numbers from here on are no counts of tokens, and no token ids."""

_STRANGE = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)


def chat_answer(response: Response, dialect: Dialect, endpoint: str) -> Answer:
    """Return the answer in a decoded reply to a chat request.

    Raises:
        AskError: it holds none: no choice, no message, neither content nor tool calls nor reasoning; or the target did
            not end it.
    """
    try:
        return _answer(response, response["choices"][0]["message"], dialect, endpoint)
    except _STRANGE as error:
        raise _odd(error) from None


def text_answer(response: Response, dialect: Dialect, endpoint: str) -> Answer:
    """Return the answer in a decoded reply to token ids: its text as it is, in which nothing was looked for.

    Raises:
        AskError: it holds none, or the target did not end it.
    """
    try:
        return _answer(response, {"content": response["choices"][0]["text"]}, dialect, endpoint)
    except _STRANGE as error:
        raise _odd(error) from None


def _odd(error: Exception) -> AskError:
    return AskError(f"not an answer: {type(error).__name__} {error}", "odd", reason="odd_answer")


def _answer(response: Response, message: Mapping[str, Any], dialect: Dialect, endpoint: str) -> Answer:
    choice = response["choices"][0]
    _check_storable(message)
    content, calls, reasoning = message.get("content"), _tool_calls(message), _reasoning(message)
    finish_reason = _finish_reason(choice.get("finish_reason"))
    usage = response.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    completion_tokens = _count(counts.get("completion_tokens"))
    token_ids = _all_ids(dialect.token_ids(choice), completion_tokens)
    if content is None and not (calls or reasoning or token_ids) and finish_reason != LENGTH:
        raise AskError("the answer's content is null", "odd", reason="odd_answer")
    return Answer(
        content=_text(content),
        finish_reason=finish_reason,
        reasoning=reasoning,
        tool_calls=calls,
        token_ids=token_ids,
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=completion_tokens,
        endpoint=endpoint,
    )


def _check_storable(message: Any) -> None:
    """Refuse what cannot be written as JSON text: half of a surrogate pair, or a number that is none.

    Raises:
        AskError: the target said so, and will again.
    """
    try:
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise AskError(f"the answer is no Unicode text: {error}", "row", reason="not_text") from None


def _finish_reason(told: Any) -> str:
    finish = finish_of(told)
    if finish is None:
        raise UnknownFinishError(told)
    if finish == FILTERED:
        raise AskError(f"the answer was ended by {told!r}", "row", reason="filtered")
    return finish


def _count(told: Any) -> int:
    """Return a number of tokens; 0 where what is told is no such number."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told < LARGEST_COUNT:
        return 0
    return int(told)


def _all_ids(ids: Any, wanted: int) -> list[int] | None:
    """Return token ids where they are all that were counted."""
    if not isinstance(ids, list) or len(ids) != wanted or not all(_is_id(token) for token in ids):
        return None
    return ids or None


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and 0 <= token < LARGEST_COUNT


def _tool_calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    if message.get("function_call"):  # as OpenAI had it before tools
        return [_tool_call({"function": message["function_call"]})]
    return [_tool_call(call) for call in message.get("tool_calls") or []]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with its arguments as JSON text, which some engines give as an object."""
    name, arguments = call["function"]["name"], call["function"].get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, str | dict | None):
        raise TypeError("a tool call without a function's name, or whose arguments are no object")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    made = {"type": "function", "function": {"name": name, "arguments": text}}
    identity = call.get("id")
    return {"id": identity, **made} if isinstance(identity, str) else made


def _reasoning(message: Mapping[str, Any]) -> str | None:
    told = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(told, str | None):
        raise TypeError(f"reasoning is {type(told).__name__}")
    return told


def _text(content: Any) -> str:
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content
