"""Every spelling of how an answer ended is one of a few."""

import pytest

from deepspec.messages.finish import KEYS, finish_of, told_in


@pytest.mark.parametrize(
    ("name", "finish"),
    [
        ("stop", "stop"), ("word", "stop"), ("eos_token", "stop"), ("eos", "stop"), ("end_turn", "stop"),
        ("STOP", "stop"),
        ("stop-sequence", "stop"), ("length", "length"), ("MAX_TOKENS", "length"), ("max_tokens", "length"),
        ("tool_use", "tool_calls"), ("tool_calls", "tool_calls"), ("function_call", "tool_calls"),
        ("content_filter", "content_filter"), ("SAFETY", "content_filter"),
        ("abort", None), ("", None), (None, None), (3, None), (["stop"], None),
    ],
)  # fmt: skip
def test_a_name_is_known(name: object, finish: str | None) -> None:
    assert finish_of(name) == finish


@pytest.mark.parametrize("key", KEYS)
def test_a_log_tells_it_under_any_of_its_names(key: str) -> None:
    assert told_in({key: "stop"}) == "stop"
    assert told_in({key: ["stop", None]}) == ["stop", None]
    assert told_in({key: {"type": "length", "length": 8}}) == "length"
    assert told_in({key: None}) is told_in({key: ""}) is told_in({}) is None
