"""Conversations: the rows of the artifacts `prompts` and `answers`, and the shapes of user files that become them.

Both artifacts hold JSONL files compressed with zstd (`*.jsonl.zst`), one row a line. See docs/formats/prompts.md and
docs/formats/answers.md.

In a **prompts** row every assistant message is a *slot* that regeneration fills: one follows each user message and
each group of tool results, and its `content` is "". An assistant message with `tool_calls` is no slot: the tool
results after it answer exactly these calls, so it stays as it is. To find the prompt that a user's answer belongs to:
`sample_id(prompt_of(parse_conversation(row)))`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from deepspec.artifacts import Artifact
from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row
from deepspec.lines.rows import read_rows
from deepspec.messages.content import check_media, shown, text_of
from deepspec.messages.finish import told_in
from deepspec.messages.tools import decoded, tool_calls, tools_of

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "calibration", "test"]
Status = Literal["success", "error", "skipped"]


class Message(TypedDict):
    """One message in the OpenAI shape."""

    role: Role
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Calls of an assistant message: `{"id", "type": "function", "function": {"name", "arguments": JSON text}}`."""
    tool_call_id: NotRequired[str]
    """Which call a tool message answers."""
    name: NotRequired[str]
    """Which function a tool message speaks for, or which speaker a user message."""
    reasoning_content: NotRequired[str]
    """What an assistant message's author thought before `content`."""
    weight: NotRequired[Literal[0]]
    """Of an assistant message that is context only, never supervised: in a user's rows, not in the artifacts."""
    finish_reason: NotRequired[str]
    """How an assistant message ended, as its log calls it: in a user's rows, not in the artifacts."""


OF_LOGS = frozenset({"weight", "finish_reason"})
"""Fields of a message that a user's row may have, and no artifact."""


class Conversation(TypedDict):
    """What identifies a sample: its messages, and the tools that the target may call."""

    messages: list[Message]
    tools: NotRequired[list[dict[str, Any]]]


class PromptRow(Conversation):
    """One row of `prompts`."""

    id: str
    split: Split
    source: str


class AnswerRow(Conversation):
    """One row of `answers`: every input row becomes exactly one, whatever happened to it."""

    id: str
    split: Split
    source: str
    status: Status
    finish_reasons: list[str]
    """One per generated turn: a `formats.finish.Finish`, whatever the engine calls it."""
    thinking: bool
    chat_template_kwargs: NotRequired[dict[str, Any]]
    """More switches with which the chat template was rendered."""
    date: NotRequired[str]
    """The day that the chat template was given, where it prints one, as 2026-01-31."""
    generated: list[int]
    """Indices of the messages that the target generated: only these are supervised."""
    reasoning: NotRequired[dict[str, str]]
    """Message index (as text) -> reasoning that the engine gave apart from the content."""
    token_ids: NotRequired[list[list[int]]]
    """Per generated turn, where the engine gives them."""
    usage: NotRequired[dict[str, Any]]
    endpoint: NotRequired[str]
    error: NotRequired[str]
    reason: NotRequired[str]
    """One word for an error of the row's own, which the next run would meet again."""


def published_rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Yield the rows of every `*.jsonl.zst` file of an artifact, files in the order of their names."""
    for name in artifact.names():
        if name.endswith(".jsonl.zst"):
            for _, row in read_rows(artifact.path(name)):
                yield row


def published_prompts(artifact: Artifact) -> Iterator[PromptRow]:
    """Yield the rows of a `prompts` artifact in order."""
    return cast(Iterator[PromptRow], published_rows(artifact))


def sample_id(conversation: Conversation) -> str:
    """Return the stable name of a sample: a hash of its messages and tools, whatever file or row it came from."""
    content = [conversation["messages"], conversation.get("tools")]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def prompt_of(conversation: Conversation) -> Conversation:
    """Return the conversation with every slot empty: what the target is asked, whatever was answered before."""
    return {**conversation, "messages": [_emptied(message) for message in conversation["messages"]]}


def user_texts(conversation: Conversation) -> list[str]:
    """Return what the user says, turn by turn."""
    return [message["content"] for message in conversation["messages"] if message["role"] == "user"]


def parse_conversation(row: Mapping[str, Any], path: str | Path | None = None, line: int | None = None) -> Conversation:
    """Return the conversation in a user's row, with a slot after every turn that the target can answer.

    Known shapes: OpenAI (`messages` of `role`, `content`), ShareGPT (`conversations` of `from`, `value`), a list of
    user turns (`turns`) and a single `prompt`; beside each an optional `system` text and `tools`. A system message
    without content is none; an assistant message's `weight` is kept where it is 0.

    Args:
        row: one decoded row.
        path: its file, for messages.
        line: its line, for messages.

    Raises:
        RowError: with reason `unknown_shape`, `empty_conversation`, `empty_message`, `wrong_roles`, `no_turn` (the
            target could not answer anywhere), `not_text` (images, or text that is no Unicode), `bad_tools`,
            `bad_weight` or `unreadable` (what nobody foresaw).
    """
    with one_row("unreadable", path, line):
        found = [_message(item) for item in _items(row)]
        messages = [message for message in found if message is not None]
        check_media(row)
        _check_order(messages)
        conversation: Conversation = {"messages": _with_slots(messages)}
        if tools := tools_of(row):
            conversation["tools"] = tools
        _check_unicode(conversation)
    return conversation


_SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}

_OPENAI_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}

_SHAPES = ("turns", "messages", "conversations", "prompt")
"""Keys under which a conversation may lie; the first that holds something."""

_OPTIONAL = ("tool_call_id", "name", "reasoning_content")
_REASONING = ("reasoning", "thinking")
"""Other names of `reasoning_content`."""

_TRAINED = ("train", "training", "loss")
"""Other names of `weight`, where they are true or false."""

_FOLLOWS: Mapping[Role, tuple[Role | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> the roles that may stand before it; None is the beginning."""


def _items(row: Mapping[str, Any]) -> list[Any]:
    """Return the raw messages of a row as OpenAI-shaped or ShareGPT-shaped items."""
    key = next((key for key in _SHAPES if row.get(key) is not None), None)
    if key is None:
        wanted = f"wanted one of {', '.join(map(repr, _SHAPES))}"
        raise RowError("unknown_shape", f"the row has the keys {shown(sorted(row))}; {wanted}")
    items = _as_turns(row[key]) if key == "turns" else row[key]
    if key == "prompt" and not isinstance(items, list):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise RowError("unknown_shape", f"wanted a list of messages, got {type(items).__name__}")
    if not items:
        raise RowError("empty_conversation", "the conversation holds no message; wanted at least one from the user")
    system = row.get("system")
    return [{"role": "system", "content": system}, *items] if system else items


def _as_turns(turns: Any) -> Any:
    if not isinstance(turns, list):
        return turns
    slot = {"role": "assistant", "content": ""}
    return [item for turn in turns for item in ({"role": "user", "content": turn}, slot)]


def _message(item: Any) -> Message | None:
    """Return one message; None for a system message that says nothing."""
    if not isinstance(item, dict):
        raise RowError("unknown_shape", f"wanted a message with 'role' and 'content', got {type(item).__name__}")
    check_media(item)
    if "from" in item and "role" not in item:
        return _sharegpt_message(item)
    role, content = _role(item.get("role"), _OPENAI_ROLES, "role"), item.get("content")
    if role == "system" and content in (None, []):
        return None
    message: dict[str, Any] = {"role": role, "content": text_of(content, role)}
    if item.get("tool_calls"):
        if role != "assistant":
            raise RowError("wrong_roles", f"tool calls in a message of role {role!r}; only the assistant calls tools")
        message["tool_calls"] = tool_calls(item["tool_calls"])
    message |= {key: item[key] for key in _OPTIONAL if isinstance(item.get(key), str)}
    return cast(Message, message | _told(item, role))


def _sharegpt_message(item: Mapping[str, Any]) -> Message | None:
    role = _role(item["from"], _SHAREGPT_ROLES, "from")
    text = text_of(item.get("value"), role)
    if role == "system" and not text.strip():  # the shape has no other way to leave it out
        return None
    message: dict[str, Any] = {"role": role, "content": text}
    if item["from"] == "function_call":
        message |= {"content": "", "tool_calls": tool_calls(decoded(text))}
    return cast(Message, message | _told(item, role))


def _role(name: Any, known: Mapping[str, Role], key: str) -> Role:
    if not isinstance(name, str) or name not in known:
        raise RowError("wrong_roles", f"unknown role {shown(name)} under {key!r}; known: {', '.join(known)}")
    return known[name]


def _told(item: Mapping[str, Any], role: Role) -> dict[str, Any]:
    """Return what else an assistant's message tells: reasoning under another name, whether it is context, its end."""
    if role != "assistant":
        return {}
    told: dict[str, Any] = {"weight": 0} if _is_context(item) else {}
    thoughts = [item[key] for key in _REASONING if isinstance(item.get(key), str) and item[key]]
    if thoughts and not item.get("reasoning_content"):
        told["reasoning_content"] = thoughts[0]
    if (finish := told_in(item)) is not None:
        told["finish_reason"] = finish if isinstance(finish, str) else shown(finish)
    return told


def _is_context(item: Mapping[str, Any]) -> bool:
    weight = item.get("weight")
    if weight is None:
        return any(item.get(key) is False for key in _TRAINED)
    if weight not in (0, 1):
        raise RowError("bad_weight", f"a message of weight {shown(weight)}; wanted 0 (context only) or 1 (supervised)")
    return bool(weight == 0)


def _check_order(messages: list[Message]) -> None:
    before: Message | None = None
    for message in messages:
        role, last = message["role"], before["role"] if before else None
        if last not in _FOLLOWS[role]:
            where = f"after {last!r}" if last else "at the beginning"
            raise RowError("wrong_roles", f"{role!r} {where}; wanted turns that alternate user and assistant")
        if role == "tool" and last == "assistant" and before and "tool_calls" not in before:
            raise RowError("wrong_roles", "a tool result after an assistant message without tool calls")
        before = message
    if not any(message["role"] == "user" for message in messages):
        raise RowError("no_turn", "no user message, so there is no turn that the target could answer")


def _emptied(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    if "tool_calls" in message:
        return cast(Message, {key: value for key, value in message.items() if key not in OF_LOGS})
    return {"role": "assistant", "content": ""}


def _with_slots(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        return messages
    return [*messages, {"role": "assistant", "content": ""}]


def _check_unicode(conversation: Conversation) -> None:
    try:
        json.dumps(conversation, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError("not_text", f"text that is no Unicode: {error.reason}") from error
