"""The accounts of a part, by hand."""

import pytest

from deepspec.artifacts import open_artifact
from deepspec.errors import AnswersError
from deepspec.regenerate.parts import Book, Tally, total_counts
from tests.regenerate.conftest import prompts


def answer(sample_id, **more):
    return {
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


def failed(sample_id, reason):
    return answer(sample_id, status="error", finish_reasons=[], generated=[], error=reason)


def counts(*rows, drift=lambda row: ()):
    tally = Tally(drift)
    for row in rows:
        tally.add(row)
    return tally.counts()


def test_counts_of_four_rows():
    told = counts(
        answer("a", token_ids=[[1, 2]]),
        answer("b", finish_reasons=["length"], thinking=True, endpoint="one, other"),
        failed("c", "prompt of 9000 tokens is too long"),
        failed("d", "prompt of 12000 tokens is too long"),
        drift=lambda row: () if row["id"] == "a" else ("drifted", "prompt_drifted"),
    )
    assert told == {
        "input": 4,
        "success": 2,
        "error": 2,
        "skipped": 0,
        "turns": 2,
        "prompt_tokens": 20,
        "completion_tokens": 4,
        "thinking": 1,
        "truncated": 1,
        "with_token_ids": 1,
        "drifted": 1,
        "prompt_drifted": 1,
        "finish_reasons": {"stop": 1, "length": 1},
        "reasons": {"prompt of # tokens is too long": 2},
        "endpoints": {"one": 2, "other": 1},
    }


def test_counts_add_up_over_parts():
    total = total_counts([counts(answer("a")), counts(answer("b"), failed("c", "busy"))])
    assert (total["input"], total["success"], total["error"]) == (3, 2, 1)
    assert total["endpoints"] == {"one": 2}
    assert total["reasons"] == {"busy": 1}


def test_a_part_whose_rows_do_not_add_up_is_not_committed(bench):
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
