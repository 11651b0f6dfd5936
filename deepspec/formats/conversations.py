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
from deepspec.formats.rows import read_rows

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
    """Date (ISO) that the chat template was given, where it prints one."""
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


def published_answers(artifact: Artifact) -> Iterator[AnswerRow]:
    """Yield the rows of an `answers` artifact in order."""
    return cast(Iterator[AnswerRow], published_rows(artifact))


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
    user turns (`turns`) and a single `prompt`; beside each an optional `system` text and `tools`.

    Args:
        row: one decoded row.
        path: its file, for messages.
        line: its line, for messages.

    Raises:
        RowError: with reason `unknown_shape`, `empty_conversation`, `empty_message`, `wrong_roles`, `no_turn` (the
            target could not answer anywhere), `not_text` (images, or text that is no Unicode) or `bad_tools`.
    """
    try:
        messages = [_message(item) for item in _items(row)]
        _check_order(messages)
        conversation: Conversation = {"messages": _with_slots(messages)}
        if tools := _tools(row):
            conversation["tools"] = tools
        _check_unicode(conversation)
    except RowError as error:
        raise RowError(error.reason, str(error), path, line) from error
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

_OPTIONAL = ("tool_call_id", "name", "reasoning_content")

_FOLLOWS: Mapping[Role, tuple[Role | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> the roles that may stand before it; None is the beginning."""


def _items(row: Mapping[str, Any]) -> list[Any]:
    """Return the raw messages of a row as OpenAI-shaped or ShareGPT-shaped items."""
    if "turns" in row:
        items = _as_turns(row["turns"])
    elif "messages" in row or "conversations" in row:
        items = row["messages"] if "messages" in row else row["conversations"]
    elif "prompt" in row:
        items = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    else:
        wanted = "wanted one of 'messages', 'conversations', 'turns', 'prompt'"
        raise RowError("unknown_shape", f"the row has the keys {sorted(row)}; {wanted}")
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


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise RowError("unknown_shape", f"wanted a message with 'role' and 'content', got {type(item).__name__}")
    if "from" in item and "role" not in item:
        return _sharegpt_message(item)
    role = _role(item.get("role"), _OPENAI_ROLES, "role")
    message: dict[str, Any] = {"role": role, "content": _text(item.get("content"), role)}
    if item.get("tool_calls"):
        if role != "assistant":
            raise RowError("wrong_roles", f"tool calls in a message of role {role!r}; only the assistant calls tools")
        message["tool_calls"] = _tool_calls(item["tool_calls"])
    message |= {key: item[key] for key in _OPTIONAL if isinstance(item.get(key), str)}
    return cast(Message, message)


def _sharegpt_message(item: Mapping[str, Any]) -> Message:
    role = _role(item["from"], _SHAREGPT_ROLES, "from")
    text = _text(item.get("value"), role)
    if item["from"] == "function_call":
        return {"role": role, "content": "", "tool_calls": _tool_calls(_decoded(text))}
    return {"role": role, "content": text}


def _role(name: Any, known: Mapping[str, Role], key: str) -> Role:
    if not isinstance(name, str) or name not in known:
        raise RowError("wrong_roles", f"unknown role {name!r} under {key!r}; known: {', '.join(known)}")
    return known[name]


def _text(content: Any, role: Role) -> str:
    """Return a message's text; only an assistant's may be empty (a slot), or a tool's (a call without result)."""
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise RowError("not_text", f"wanted text in a message of role {role!r}, got {type(content).__name__}")
    if role == "user" and not content.strip():
        raise RowError("empty_message", "a user message holds no text")
    return content


def _part(part: Any) -> str:
    if isinstance(part, dict) and "text" in part and isinstance(part["text"], str):
        return part["text"]
    kind = part["type"] if isinstance(part, dict) and "type" in part else type(part).__name__
    raise RowError("not_text", f"a message holds a part of type {kind!r}; only text can be used")


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    return [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def _tool_call(call: Any) -> dict[str, Any]:
    function = call["function"] if isinstance(call, dict) and "function" in call else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("bad_tools", "a tool call has no function name; wanted {'name': …, 'arguments': …}")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False, default=str)
    result = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    identity = call.get("id")
    return {"id": identity, **result} if isinstance(identity, str) else result


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = row.get("tools")
    tools = _decoded(tools) if isinstance(tools, str) and tools.strip() else tools
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("bad_tools", "wanted a list of objects under 'tools'")
    return tools


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("bad_tools", f"tools or tool calls are not JSON: {error}") from error


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
    if message["role"] != "assistant" or "tool_calls" in message:
        return message
    return {"role": "assistant", "content": ""}


def _with_slots(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        return messages
    return [*messages, {"role": "assistant", "content": ""}]


def _check_unicode(conversation: Conversation) -> None:
    try:
        json.dumps(conversation, ensure_ascii=False).encode()
    except (UnicodeEncodeError, TypeError) as error:
        raise RowError("not_text", f"a value that cannot be written as JSON text: {error}") from error
