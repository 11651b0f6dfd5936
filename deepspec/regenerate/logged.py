"""What a row of a log says of its answers: the fields of an answer row, or why it cannot be adopted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from deepspec.errors import RowError
from deepspec.lines.rows import is_json, is_text
from deepspec.messages.conversations import OF_LOGS, Conversation, Message
from deepspec.messages.finish import FILTERED, STOP, finish_of, told_in
from deepspec.messages.thinking import holds_reasoning

NO_ANSWER = "the answers file has no answer to this prompt"
ALL_CONTEXT = "every turn of the answer has weight 0"
SHORT = {NO_ANSWER: "no_answer", ALL_CONTEXT: "all_weight_0"}
"""What rows that are skipped for these are counted by."""

_HOLDERS = ("choices", "response", "body", "meta_info")
"""Keys under which logs of requests keep the response, or parts of it."""

_DEEPEST = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Logged:
    """What one row gives."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of a successful `AnswerRow` beside those of its prompt."""
    skipped: str = ""
    """Why there is no answer to adopt, though nothing is wrong with the row."""
    tells_finish: bool = False
    """Whether it says of any turn how it ended."""


def read_logged(row: Mapping[str, Any], conversation: Conversation) -> Logged:
    """Return what a row says of its answers.

    Args:
        row: as it lies in the file.
        conversation: the same, parsed.

    Raises:
        RowError: an answer is not whole (`only_reasoning`, `filtered`), or what is told of it makes no sense
            (`unknown_finish`, `wrong_lengths`, `bad_token_ids`, `bad_switches`, `mixed_thinking`, `bad_generated`).
    """
    messages = conversation["messages"]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if _lacks_content(messages, turns):
        return Logged(skipped=NO_ANSWER)
    generated = [index for index in _generated(row, messages, turns) if "weight" not in messages[index]]
    if not generated:
        return Logged(skipped=ALL_CONTEXT)
    told = _finish_by_turn(row, messages, turns)
    reasoning = _reasoning(row, messages, generated)
    return Logged(
        fields={
            "messages": [_bare(message) for message in messages],
            "finish_reasons": [_finish(told.get(index)) for index in generated],
            "thinking": _thinking(row, [messages[index]["content"] for index in generated], bool(reasoning)),
            "generated": generated,
            **({"reasoning": reasoning} if reasoning else {}),
            **_token_ids(row, turns, generated),
            **_switches(row),
            **_day(row),
        },
        tells_finish=bool(told),
    )


def _lacks_content(messages: Sequence[Message], turns: Sequence[int]) -> bool:
    """Return whether a turn was not answered."""
    empty = [
        messages[index] for index in turns if not messages[index]["content"] and "tool_calls" not in messages[index]
    ]
    if any(message.get("reasoning_content") for message in empty):
        raise RowError("only_reasoning", "only reasoning, no content")
    return bool(empty)


def _generated(row: Mapping[str, Any], messages: Sequence[Message], turns: list[int]) -> list[int]:
    """Return the turns that the target generated: all, or those that a row of our own artifact names."""
    given = row.get("generated")
    if given is None:
        return turns
    own = row.get("messages")
    if not isinstance(own, list) or len(own) != len(messages) or not _are_ints(given) or not set(given) <= set(turns):
        raise RowError("bad_generated", "'generated' does not name assistant messages of the row by their index")
    return sorted(set(given))


def _finish_by_turn(row: Mapping[str, Any], messages: Sequence[Message], turns: Sequence[int]) -> dict[int, Any]:
    """Return how turns ended, as the log calls it: the message's own word, the row's list, the row's of the last."""
    said = next((told for spot in _spots(row, _DEEPEST) if (told := told_in(spot)) is not None), None)
    if isinstance(said, list):
        by_turn = dict(zip(_turns_of(row, said, turns, "finish reasons"), said, strict=True))
    else:
        by_turn = {turns[-1]: said}
    by_turn |= {index: messages[index].get("finish_reason") or by_turn.get(index) for index in turns}
    return {index: told for index, told in by_turn.items() if told not in (None, "")}


def _turns_of(row: Mapping[str, Any], values: Sequence[Any], turns: Sequence[int], what: str) -> Sequence[int]:
    """Return the turns that a list speaks of: all, or the generated ones that the row names."""
    named = row.get("generated")
    if named is not None and len(values) == len(named):
        return sorted(set(named))
    if len(values) != len(turns):
        raise RowError("wrong_lengths", f"{len(values)} {what} for {len(turns)} assistant turns")
    return turns


def _spots(value: Any, room: int) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a row that may tell how its answer ended: itself, then the response that it holds."""
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict) or not room:
        return
    yield value
    for key in _HOLDERS:
        yield from _spots(value.get(key), room - 1)


def _finish(told: Any) -> str:
    if told is None:
        return STOP
    finish = finish_of(told.get("type") if isinstance(told, dict) else told)
    if finish is None:
        raise RowError("unknown_finish", f"ended by {str(told)[:40]!r}, which is no known finish reason")
    if finish == FILTERED:
        raise RowError("filtered", f"the answer was withheld ({str(told)[:40]})")
    return finish


def _reasoning(row: Mapping[str, Any], messages: Sequence[Message], generated: Sequence[int]) -> dict[str, str]:
    """Return message index (as text) -> reasoning apart from the content."""
    own = row.get("reasoning")
    told = own if isinstance(own, dict) else {}
    found = {str(index): messages[index].get("reasoning_content") or told.get(str(index)) for index in generated}
    texts = {index: text for index, text in found.items() if isinstance(text, str) and text}
    if not all(is_text(text) for text in texts.values()):
        raise RowError("not_text", "reasoning that is no Unicode")
    return texts


def _thinking(row: Mapping[str, Any], contents: Sequence[str], apart: bool) -> bool:
    """Return whether the answers were given in thinking mode: as the row says, else as its answers look."""
    switches = row.get("chat_template_kwargs")
    said = (row.get("thinking"), row.get("enable_thinking"), _object(switches).get("enable_thinking"))
    for value in said:
        if value is not None:
            return _switch(value)
    inside = [holds_reasoning(content) for content in contents]
    if not apart and any(inside) and not all(inside):
        raise RowError(
            "mixed_thinking",
            f"{sum(inside)} of {len(inside)} answers hold their reasoning, so what the others were given cannot be "
            "told; say 'thinking': true or false in the row",
        )
    return apart or any(inside)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RowError("bad_switches", f"'thinking' is {type(value).__name__}; wanted true or false")
    return value


def _object(value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise RowError("bad_switches", f"'chat_template_kwargs' is {type(value).__name__}; wanted an object")
    if not is_json(value):
        raise RowError("bad_switches", "'chat_template_kwargs' cannot be written as JSON")
    return value or {}


def _switches(row: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in _object(row.get("chat_template_kwargs")).items() if key != "enable_thinking"}
    return {"chat_template_kwargs": told} if told else {}


def _token_ids(row: Mapping[str, Any], turns: Sequence[int], generated: Sequence[int]) -> dict[str, list[list[int]]]:
    given = row.get("token_ids")
    if not given:
        return {}
    if not isinstance(given, list) or not all(_are_ints(ids) for ids in given):
        raise RowError("bad_token_ids", "'token_ids' holds no list of token ids for each assistant turn")
    by_turn = dict(zip(_turns_of(row, given, turns, "lists of token ids"), given, strict=True))
    return {"token_ids": [by_turn[index] for index in generated]}


def _are_ints(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def _day(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the day that a row names, where it is one: templates that print a date are given it."""
    told = row.get("date")
    if isinstance(told, date):
        return {"date": told.isoformat()[:10]}
    try:
        return {"date": date.fromisoformat(told[:10]).isoformat()} if isinstance(told, str) else {}
    except ValueError:
        return {}


def _bare(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "reasoning_content" and key not in OF_LOGS}
