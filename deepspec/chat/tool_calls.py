"""Calls of tools as templates read them: arguments are JSON text on the wire, and an object in a template.

Engines decode the text before they render (vLLM, SGLang and llama.cpp do), so what the target saw is what a template
makes of the object. A template that was written for text, as some that join it to other text were, is given text.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from deepspec.chat.answered import ChatMessage
from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row

Render = Callable[[Sequence[ChatMessage], Sequence[ChatMessage] | None], str]
"""`render(messages, tools)` with arguments as they stand there."""

_ARGUMENTS = {"probed_key": "probed value"}
_TEXT = json.dumps(_ARGUMENTS)
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "d",
        "parameters": {"type": "object", "properties": {"probed_key": {"type": "string", "description": "d"}}},
    },
}


def probe_of_a_call() -> tuple[ChatMessage, Sequence[ChatMessage], str]:
    """Return a message that calls a tool, the tools that it was told of, and the value of the call's one argument."""
    return _probe(_ARGUMENTS), [_TOOL], _ARGUMENTS["probed_key"]


def with_arguments(message: ChatMessage, *, as_text: bool) -> ChatMessage:
    """Return a message whose calls have arguments in the form that a template reads.

    Args:
        message: of any role, its calls with arguments as JSON text or as an object.
        as_text: whether the template reads text.

    Raises:
        RowError: arguments that are no JSON object (`bad_tools`).
    """
    if not message.get("tool_calls"):
        return message
    form = _as_text if as_text else _as_object
    return {**message, "tool_calls": [_call(call, form) for call in message["tool_calls"]]}


def reads_text(render: Render) -> bool:
    """Return whether a template must be given arguments as text: with an object it fails, or prints Python's form.

    Args:
        render: renders messages with the template.
    """
    written, other = _rendered(render, _TEXT), _rendered(render, _ARGUMENTS)
    if written is None or _TEXT not in written:
        return False
    return other is None or str(_ARGUMENTS) in other


def shown(calls: Sequence[Mapping[str, Any]], text: str) -> bool:
    """Return whether a text shows the calls whole: the names in order, all keys, texts and numbers of the arguments.

    Arguments that are no JSON, as a template for text takes them, are wanted word for word.
    """
    rest = text
    for call in calls:
        name = name_of(call)
        _, found, rest = rest.partition(name)
        if not name or not found or not _shows_arguments(_function(call).get("arguments"), text):
            return False
    return True


def name_of(call: Mapping[str, Any]) -> str:
    """Return the name of the function that is called; empty where there is none."""
    name = _function(call).get("name")
    return name if isinstance(name, str) else ""


def _shows_arguments(arguments: Any, text: str) -> bool:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    if written.strip() in text:
        return True
    try:
        leaves = _leaves(json.loads(written, object_pairs_hook=list, parse_int=str, parse_float=str))
        return all(_stands(leaf, text) for leaf in leaves)
    except ValueError:
        return False


def _leaves(value: Any) -> Iterator[str]:
    """Yield the keys, texts and numbers (as they are written) of decoded JSON whose objects are lists of pairs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _stands(leaf: str, text: str) -> bool:
    return leaf.strip() in text or any(json.dumps(leaf, ensure_ascii=form)[1:-1] in text for form in (False, True))


def _call(call: Mapping[str, Any], form: Callable[[Any], Any]) -> Mapping[str, Any]:
    function = _function(call)
    changed = {**function, "arguments": form(function.get("arguments"))}
    return changed if function is call else {**call, "function": changed}


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a call holds of its function: of older rows it is the call itself."""
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise RowError("bad_tools", f"the function of a tool call is {type(function).__name__}; wanted an object")
    return function


def _as_object(arguments: Any) -> Mapping[str, Any]:
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RowError("bad_tools", f"the arguments of a tool call are no JSON: {error}") from error
    if arguments is None or isinstance(arguments, str):
        return {}
    if not isinstance(arguments, Mapping):
        raise RowError("bad_tools", f"the arguments of a tool call are {type(arguments).__name__}; wanted an object")
    return arguments


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str) and arguments.strip():
        return arguments
    return json.dumps(_as_object(arguments), ensure_ascii=False)


def _probe(arguments: Any) -> ChatMessage:
    call = {"id": "call00000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _rendered(render: Render, arguments: Any) -> str | None:
    """Return what a template makes of a call, with a tool declared or without one; None where it refuses it."""
    messages: list[ChatMessage] = [{"role": "user", "content": "x"}, _probe(arguments)]
    for tools in ([_TOOL], None):
        with suppress(RowError), one_row("template_refuses"):
            return render(messages, tools)
    return None
