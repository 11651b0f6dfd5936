"""Tools and calls of tools in a user's row, in the OpenAI shape."""

import json
from collections.abc import Mapping
from typing import Any

from deepspec.errors import RowError
from deepspec.lines.rows import DEEPEST, nests_beyond


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the declarations of tools that a row holds, as a list or as its JSON text; none where it has none.

    Raises:
        RowError: they are no list of objects, or cannot be written as JSON (`bad_tools`).
    """
    tools = row.get("tools")
    tools = decoded(tools) if isinstance(tools, str) and tools.strip() else tools
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("bad_tools", "wanted a list of objects under 'tools'")
    if nests_beyond(tools):
        raise RowError("bad_tools", f"tools with more than {DEEPEST} lists and objects within each other")
    _dumped(tools)
    return tools


def tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Return one call or a list of them as `{"id", "type", "function": {"name", "arguments": JSON text}}`.

    Raises:
        RowError: one has no name, or arguments that cannot be written as JSON (`bad_tools`).
    """
    return [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def decoded(text: str) -> Any:
    """Return what JSON text says.

    Raises:
        RowError: it is none (`bad_tools`).
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("bad_tools", f"tools or tool calls are not JSON: {error}") from error


def _tool_call(call: Any) -> dict[str, Any]:
    function = call["function"] if isinstance(call, dict) and "function" in call else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("bad_tools", "a tool call has no function name; wanted {'name': …, 'arguments': …}")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = _dumped(arguments or {}, str)
    result = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    identity = call.get("id")
    return {"id": identity, **result} if isinstance(identity, str) else result


def _dumped(value: Any, default: Any = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=default)
    except (ValueError, TypeError, RecursionError) as error:
        raise RowError("bad_tools", f"tools or tool calls cannot be written as JSON: {error}") from error
