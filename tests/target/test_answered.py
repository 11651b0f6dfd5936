"""A row of answers with missing or odd fields is that row's error, by one word, with its id."""

from datetime import date
from typing import Any

import pytest

from deepspec.chat.answered import read_answered
from deepspec.errors import RowError
from tests.given.targets.tiny import answered
from tests.target.kinds import KINDS

WITHOUT = "without it"


def row(**changes: Any) -> dict[str, Any]:
    changed = {**answered("r", "hi", "yo", "more", "ok"), **changes}
    return {key: value for key, value in changed.items() if value is not WITHOUT}


def reason(given: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        KINDS["qwen2_5"].chat().render(given)
    return caught.value.reason


ODD: list[dict[str, Any]] = [
    {"id": WITHOUT},
    {"id": 7},
    {"id": ""},
    {"id": "half \ud83d"},
    {"messages": WITHOUT},
    {"messages": "hi"},
    {"messages": ["hi", "yo"]},
    {"messages": [{"content": "hi"}, {"role": "assistant", "content": "yo"}]},
    {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "yo"}], "generated": [1]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": "f"}]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [None]}]},
    {"generated": WITHOUT},
    {"generated": "13"},
    {"generated": [True, 3]},
    {"generated": [1.0, 3]},
    {"generated": [3, 1]},
    {"generated": [1, 1]},
    {"generated": [-1, 3]},
    {"generated": [1, 4]},
    {"generated": [0, 1]},
    {"finish_reasons": WITHOUT},
    {"finish_reasons": "stop"},
    {"finish_reasons": ["stop"]},
    {"finish_reasons": ["stop", "stop", "stop"]},
    {"finish_reasons": ["stop", None]},
    {"finish_reasons": ["stop", "because"]},
    {"finish_reasons": ["stop", 1]},
    {"thinking": WITHOUT},
    {"thinking": "false"},
    {"thinking": None},
    {"chat_template_kwargs": ["effort"]},
    {"reasoning": "hm"},
    {"reasoning": {"1": ["hm"]}},
    {"token_ids": "4"},
    {"token_ids": [[1]]},
    {"token_ids": [[1], [2], [3]]},
    {"token_ids": [[1], "2"]},
    {"token_ids": [[1], [2.0]]},
    {"token_ids": [[1], [True]]},
    {"tools": "weather"},
    {"tools": ["weather"]},
    {"usage": 12},
    {"usage": {"prompt_tokens": "12"}},
    {"usage": {"prompt_tokens": -1}},
    {"date": "yesterday"},
    {"date": 2026},
]


@pytest.mark.parametrize("changes", ODD, ids=repr)
def test_an_odd_row_is_malformed(changes: dict[str, Any]) -> None:
    assert reason(row(**changes)) == "malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": None},
        {"tools": []},
        {"usage": WITHOUT},
        {"usage": {}},
        {"usage": {"prompt_tokens": None}},
        {"reasoning": None},
        {"token_ids": None},
        {"token_ids": [None, None]},
        {"chat_template_kwargs": None},
        {"date": None},
        {"finish_reasons": ["eos", "end_turn"]},
        {"source": WITHOUT},
    ],
    ids=repr,
)
def test_what_a_row_may_leave_out_is_not_odd(changes: dict[str, Any]) -> None:
    kind = KINDS["qwen2_5"]
    (sample,) = kind.chat().render(row(**changes)).samples
    (plain,) = kind.chat().render(row()).samples
    assert sample == plain


def test_nothing_generated_and_a_withheld_answer_have_words_of_their_own() -> None:
    assert reason(row(generated=[], finish_reasons=[])) == "nothing_supervised"
    assert reason(row(finish_reasons=["stop", "content_filter"])) == "filtered"


def test_names_of_limits_mean_that_an_answer_was_cut() -> None:
    assert [turn.truncated for turn in read_answered(row(finish_reasons=["max_tokens", "LENGTH"])).turns] == [True] * 2


def test_a_row_is_read_as_it_is_written() -> None:
    given = read_answered(row(date="2026-02-03", usage={"prompt_tokens": 7}, chat_template_kwargs={"effort": "low"}))
    assert (given.day, given.prompt_tokens) == (date(2026, 2, 3), 7)
    assert given.switches == {"effort": "low", "enable_thinking": False}
    assert [(turn.index, turn.content) for turn in given.turns] == [(1, "yo"), (3, "ok")]


def test_the_error_names_the_sample() -> None:
    with pytest.raises(
        RowError, match=r"sample r: finish_reasons has 1 entries; wanted 2, one for each generated turn"
    ):
        KINDS["qwen2_5"].chat().render(row(finish_reasons=["stop"]))
