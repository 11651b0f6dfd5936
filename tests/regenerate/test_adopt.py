"""Answers that the target gave before are adopted by what was asked, and no engine is needed."""

import json

import pytest

from deepspec.artifacts import checksum
from deepspec.errors import SourceError
from deepspec.formats.conversations import published_answers
from tests.regenerate.conftest import prompt, prompts


@pytest.fixture
def adopt(bench, tmp_path):
    """Return the answers to prompts from a file of rows."""

    def adopt(rows, given):
        path = tmp_path / "given.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
        bench.spec = bench.spec.but(answers=checksum(path))
        placement = bench.placement(locations={checksum(path): str(path)})
        return list(published_answers(bench.regenerate(bench.publish(rows), placement)))

    return adopt


def log(*texts):
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


def test_answers_belong_to_the_prompt_that_asks_the_same(adopt):
    given = [log(f"row {number}", f"answer {number}") for number in reversed(range(25))]
    rows = adopt(prompts(25), given)
    assert [row["messages"][1]["content"] for row in rows] == [f"answer {number}" for number in range(25)]
    assert rows[0]["status"] == "success"
    assert (rows[0]["generated"], rows[0]["finish_reasons"], rows[0]["thinking"]) == ([1], ["stop"], False)


def test_a_prompt_without_an_answer_is_skipped(adopt):
    rows = adopt(prompts(3), [log("row 0", "answer"), log("row 1", ""), log("something else", "answer")])
    assert [row["status"] for row in rows] == ["success", "skipped", "skipped"]
    assert rows[1]["error"] == "the answers file has no answer to this prompt"


def test_all_turns_and_what_is_known_of_them_are_adopted(adopt):
    given = log("a?", "b", "c?", "d") | {"finish_reasons": ["stop", "length"], "token_ids": [[1], [2, 3]]}
    given["messages"][1]["reasoning_content"] = "hm"
    (row,) = adopt([prompt("x", "a?", "c?")], [given])
    assert [message["content"] for message in row["messages"]] == ["a?", "b", "c?", "d"]
    assert row["generated"] == [1, 3]
    assert row["finish_reasons"] == ["stop", "length"]
    assert row["token_ids"] == [[1], [2, 3]]
    assert row["reasoning"] == {"1": "hm"}
    assert row["thinking"] is True


def test_sharegpt_logs_are_adopted(adopt):
    conversation = [{"from": "human", "value": "row 0"}, {"from": "gpt", "value": "answer"}]
    (row,) = adopt(prompts(1), [{"conversations": conversation}])
    assert row["messages"][1] == {"role": "assistant", "content": "answer"}


def test_a_bad_line_is_named(adopt):
    with pytest.raises(SourceError, match=r"given.jsonl:2: .*wrong|unknown role"):
        adopt(prompts(1), [log("row 0", "a"), {"messages": [{"role": "nobody", "content": "x"}]}])


def test_a_file_that_changed_or_is_gone_is_named(bench, tmp_path):
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps(log("row 0", "a")) + "\n")
    bench.spec = bench.spec.but(answers=checksum(path))
    placement = bench.placement(locations={checksum(path): str(path)})
    path.write_text(json.dumps(log("row 0", "b")) + "\n")
    with pytest.raises(SourceError, match="changed since"):
        bench.regenerate(bench.publish(prompts(1)), placement)
    path.unlink()
    with pytest.raises(SourceError, match="no such answers file"):
        bench.regenerate(bench.publish(prompts(1)), placement)
