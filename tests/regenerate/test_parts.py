"""The accounts of a part, by hand."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from deepspec.artifacts import open_artifact
from deepspec.errors import AnswersError
from deepspec.messages.conversations import AnswerRow
from deepspec.regenerate.parts import Book
from deepspec.regenerate.row_counts import RowCounts, total_counts
from tests.given.engines.prompts import Bench, prompts


def answer(sample_id: str, **more: Any) -> AnswerRow:
    found = {
        "id": sample_id,
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
        "status": "success",
        "finish_reasons": ["stop"],
        "thinking": False,
        "generated": [1],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
        "endpoint": "one",
        **more,
    }
    return cast(AnswerRow, found)


def failed(sample_id: str, error: str, **more: Any) -> AnswerRow:
    row = {"id": sample_id, "messages": [], "thinking": False, "generated": [], "finish_reasons": []}
    return cast(AnswerRow, {**row, "status": "error", "error": error, **more})


def counts(*rows: AnswerRow, drift: Callable[[Any], Any] = lambda row: ()) -> dict[str, Any]:
    tally = RowCounts(drift)
    for row in rows:
        tally.add(row)
    return tally.counts()


def test_counts_of_five_rows() -> None:
    told = counts(
        answer("a", token_ids=[[1, 2]]),
        answer("b", finish_reasons=["length"], thinking=True, endpoint="one, other"),
        failed("c", "prompt of 9000 tokens is too long", reason="refused"),
        failed("d", "prompt of 12000 tokens is too long", reason="refused"),
        failed("e", "out of memory"),
        drift=lambda row: () if row["id"] == "a" else ("drifted", "date_unknown"),
    )
    assert told == {
        "input": 5,
        "success": 2,
        "error": 3,
        "skipped": 0,
        "turns": 2,
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "thinking": 1,
        "truncated": 1,
        "with_token_ids": 1,
        "without_usage": 0,
        "drifted": 1,
        "prompt_drifted": 0,
        "date_unknown": 1,
        "finish_reasons": {"stop": 1, "length": 1},
        "reasons": {"prompt of # tokens is too long": 2, "out of memory": 1},
        "bad": {"refused": 2},
        "endpoints": {"one": 2, "other": 1},
    }


def test_a_row_to_another_prompt_and_one_that_nobody_counted_are_told() -> None:
    told = counts(
        failed("a", "the engine read 200 tokens", reason="prompt_drifted"),
        answer("b", usage={"prompt_tokens": 0, "completion_tokens": 2}),
        answer("c", usage={"prompt_tokens": 9, "completion_tokens": 2}),
    )
    assert (told["prompt_drifted"], told["without_usage"], told["prompt_tokens"]) == (1, 1, 9)


def test_reasons_that_hold_the_prompt_do_not_grow_with_the_rows() -> None:
    words = [failed(f"id-{n}", f"bad input {chr(97 + n % 26) * (1 + n // 26)}", reason="refused") for n in range(100)]
    often = [failed(f"too-{n}", f"{n} tokens", reason="refused") for n in range(3)]
    told = counts(*words, *often)["reasons"]
    assert len(told) == 21
    assert told["# tokens"] == 3
    assert sum(told.values()) == 103
    assert sum(total_counts([counts(*words), counts(*often)])["reasons"].values()) == 103


def test_counts_add_up_over_parts() -> None:
    total = total_counts([counts(answer("a")), counts(answer("b"), failed("c", "busy"))])
    assert (total["input"], total["success"], total["error"]) == (3, 2, 1)
    assert total["endpoints"] == {"one": 2}
    assert total["reasons"] == {"busy": 1}


def test_a_part_whose_rows_do_not_add_up_is_not_committed(bench: Bench) -> None:
    ref = bench.publish(prompts(10))
    out = bench.out(ref)
    book = Book(bench.spec, open_artifact(bench.store, ref, bench.folder), out, lambda row: ())
    for part, row in book.todo():
        book.finish(part, answer(row["id"]))
    (part,) = book.take_complete(keep_errors=False)
    part.ledger.append(answer("id-3", status="lost"))
    with pytest.raises(AnswersError, match=r"9 success \+ 0 error \+ 0 skipped for 10 prompts"):
        book.commit(part)
    assert out.parts() == []
