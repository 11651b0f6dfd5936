"""How an answer ended: the one table of the names that engines, services and logs have for it."""

from collections.abc import Mapping
from typing import Any, Literal

Finish = Literal["stop", "length", "tool_calls"]
"""The target ended the answer itself, with a stop token or with calls of tools; or a limit cut it."""

STOP: Finish = "stop"
LENGTH: Finish = "length"
TOOL_CALLS: Finish = "tool_calls"

FILTERED = "content_filter"
"""A service withheld the answer: asking again gives the same."""

_NAMES: Mapping[Finish | str, tuple[str, ...]] = {
    STOP: (
        "stop", "eos", "eos_token", "word", "end_turn", "end", "stop_sequence", "stop_word", "stop_token", "complete",
        "completed", "finished", "finish_reason_stop", "natural",
    ),
    LENGTH: (
        "length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "max_completion_tokens",
        "model_length", "model_context_window_exceeded", "context_length", "limit", "token_limit", "truncated",
        "incomplete", "finish_reason_max_tokens",
    ),
    TOOL_CALLS: ("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"),
    FILTERED: (
        "content_filter", "content_filtered", "filtered", "safety", "recitation", "blocklist", "prohibited_content",
        "refusal", "guardrail_intervened", "finish_reason_safety",
    ),
}  # fmt: skip

_KNOWN: Mapping[str, str] = {name: finish for finish, names in _NAMES.items() for name in names}

KEYS = ("finish_reason", "finish_reasons", "finishReason", "stop_reason", "stopReason", "done_reason", "stop_type")
"""Keys under which rows and messages of logs tell it."""


def finish_of(told: Any) -> str | None:
    """Return how an answer ended, a `Finish` or `FILTERED`; None where the name is not known, or there is none.

    Args:
        told: what an engine or a log says, in whatever case, with hyphens or underscores.
    """
    if not isinstance(told, str):
        return None
    return _KNOWN.get(told.strip().lower().replace("-", "_").replace(" ", "_"))


def told_in(item: Mapping[str, Any]) -> Any:
    """Return what a row, a message or a choice of a log tells of its end, as it stands there; None where nothing.

    It is a name, a list of names by turn, or whatever else the log has; of an object (SGLang's own), its `type`.
    """
    for key in KEYS:
        told = item.get(key)
        told = told.get("type") if isinstance(told, dict) else told
        if told not in (None, "", []):
            return told
    return None
