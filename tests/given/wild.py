"""Rows as nobody wrote them: JSON of any shape under the keys that readers look at."""

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

KEYS = (
    "messages", "conversations", "turns", "prompt", "role", "content", "from", "value", "system", "tools", "tool_calls",
    "function", "name", "arguments", "type", "text", "image", "weight", "train", "reasoning", "thinking", "source",
    "id", "finish_reason", "finish_reasons", "choices", "response", "token_ids", "generated", "date",
    "chat_template_kwargs",
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=()), max_size=4) | st.sampled_from(
    [
        "user",
        "assistant",
        "tool",
        "system",
        "human",
        "gpt",
        "function_call",
        "[/INST]",
        "<image>",
        "<think>",
        "stop",
        "\0",
    ]
)
POISON = st.sampled_from([float("nan"), float("-inf"), "\ud800", 10**30, -0.0])
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | POISON
ANY_JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": TEXTS | ANY_JSON},
        optional={
            "tool_calls": ANY_JSON, "reasoning": ANY_JSON, "weight": ANY_JSON | st.just(0), "finish_reason": ANY_JSON,
            "images": ANY_JSON,
        },
    ),
    max_size=4,
)  # fmt: skip
NAMES = st.sampled_from(["stop", "length", "tool_use", "content_filter", "crashed", "", None])
FULL: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How warm is it in Bern?"}], "name": "Ada"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "warm", "arguments": {"city": "Bern"}}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "assistant", "content": "Seven.", "reasoning": "7", "weight": 0, "finish_reason": "stop"},
        {"role": "user", "content": "And there?"},
        {"role": "assistant", "content": "Nine.", "weight": 1},
    ],
    "tools": [{"type": "function", "function": {"name": "warm", "parameters": {"default": None}}}],
    "source": "logs",
    "date": "2024-02-28",
    "finish_reasons": ["tool_calls", "stop", "length"],
    "token_ids": [[1, 2], [3], [4, 5]],
    "thinking": False,
    "chat_template_kwargs": {"reasoning_effort": "low"},
    "reasoning": {"6": "9"},
    "image": None,
}
"""A row with everything that is read."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each value inside another lies."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from paths(item, (*path, key))


def put(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value in one place, or with nothing there."""
    copy = dict(row) if isinstance(row, dict) else list(row)
    if len(path) == 1 and value is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = put(row[path[0]], path[1:], value) if path[1:] else value
    return copy


GONE = object()
ALMOST = st.tuples(st.sampled_from(list(paths(FULL))), POISON | NAMES | ANY_JSON | st.just(GONE)).map(
    lambda told: put(FULL, *told)
)
"""Rows of which one value may be anything, or missing."""

KNOWN: tuple[dict[str, Any], ...] = (
    {"id": "\ud800"},
    *(
        put(FULL, path, value)
        for path, value in (
            (("tools", 0, "function", "parameters", "default"), float("nan")),
            (("source",), "\ud800"),
            (("messages", 1, "name"), "\ud800"),
            (("messages", 2, "tool_calls", 0, "function", "arguments", "city"), float("inf")),
            (("messages", 6, "content"), None),
            (("finish_reasons", 2), GONE),
            (("finish_reasons", 2), "crashed"),
            (("token_ids", 0), GONE),
            (("token_ids", 0, 1), "2"),
            (("date",), "2024-02-30"),
            (("reasoning", "6"), "\ud800"),
            (("chat_template_kwargs", "reasoning_effort"), "\ud800"),
            (("chat_template_kwargs", "reasoning_effort"), float("nan")),
        )
    ),
)
"""Rows that have ended a run."""

ROWS = (
    st.dictionaries(st.sampled_from(KEYS), ANY_JSON, max_size=5)
    | st.fixed_dictionaries({"messages": MESSAGES}, optional=dict.fromkeys(KEYS[8:], ANY_JSON))
    | ALMOST
)
"""What one line of a file of rows may hold, if it holds an object."""
