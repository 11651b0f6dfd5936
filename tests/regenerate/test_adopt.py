"""Answers that the target gave before are adopted by what was asked, and no engine is needed."""

import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepspec.disk import checksum
from deepspec.errors import BadRowsError, RowError, SourceError
from deepspec.messages.conversations import Conversation, parse_conversation, prompt_of, published_rows
from deepspec.regenerate.shelf import Shelf
from tests.given import wild
from tests.given.engines.prompts import Bench, prompt, prompts

Adopt = Callable[..., list[dict[str, Any]]]
"""Rows of prompts, those of the file, and what the spec says else -> the answers."""


@pytest.fixture
def adopt(bench: Bench, tmp_path: Path) -> Adopt:
    """Return the answers to prompts from a file of rows."""

    def adopt(rows: list[dict[str, Any]], given: list[dict[str, Any] | str], **spec: Any) -> list[dict[str, Any]]:
        path = tmp_path / "given.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in given))
        bench.spec = bench.spec.but(answers=checksum(path), **spec)
        placement = bench.placement(locations={checksum(path): str(path)})
        return list(published_rows(bench.regenerate(bench.publish(rows), placement)))

    return adopt


def log(*texts: str | None) -> dict[str, Any]:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


def test_answers_belong_to_the_prompt_that_asks_the_same(adopt: Adopt) -> None:
    given = [log(f"row {number}", f"answer {number}") for number in reversed(range(25))]
    rows = adopt(prompts(25), given)
    assert [row["messages"][1]["content"] for row in rows] == [f"answer {number}" for number in range(25)]
    assert rows[0]["status"] == "success"
    assert "date" not in rows[0]
    assert (rows[0]["generated"], rows[0]["finish_reasons"], rows[0]["thinking"]) == ([1], ["stop"], False)


def test_a_prompt_without_an_answer_is_skipped(adopt: Adopt) -> None:
    rows = adopt(prompts(3), [log("row 0", "answer"), log("row 1", ""), log("something else", "answer")])
    assert [row["status"] for row in rows] == ["success", "skipped", "skipped"]
    assert rows[1]["error"] == "the answers file has no answer to this prompt"


def test_all_turns_and_what_is_known_of_them_are_adopted(adopt: Adopt) -> None:
    given = log("a?", "b", "c?", "d") | {"finish_reasons": ["stop", "length"], "token_ids": [[1], [2, 3]]}
    given["messages"][1]["reasoning_content"] = "hm"
    (row,) = adopt([prompt("x", "a?", "c?")], [given])
    assert [message["content"] for message in row["messages"]] == ["a?", "b", "c?", "d"]
    assert row["generated"] == [1, 3]
    assert row["finish_reasons"] == ["stop", "length"]
    assert row["token_ids"] == [[1], [2, 3]]
    assert row["reasoning"] == {"1": "hm"}
    assert row["thinking"] is True


def test_sharegpt_logs_are_adopted(adopt: Adopt) -> None:
    conversation = [{"from": "human", "value": "row 0"}, {"from": "gpt", "value": "answer"}]
    (row,) = adopt(prompts(1), [{"conversations": conversation}])
    assert row["messages"][1] == {"role": "assistant", "content": "answer"}


IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "x"}]}
TORN = '{"messages": [{"role": "us'


def test_rows_that_prepare_drops_are_dropped_and_counted_again(adopt: Adopt, bench: Bench) -> None:
    rows = adopt(prompts(2), [log("row 0", "a"), IMAGE, TORN, log("row 1", "b")])
    assert [row["messages"][1]["content"] for row in rows] == ["a", "b"]
    assert bench.heard.lines[0] == "4 rows of answers read, 2 kept, dropped: 1 not_text, 1 not_json"


@pytest.mark.parametrize(("bad", "message"), [(TORN, "not JSON"), (IMAGE, "type 'image_url'")])
def test_a_bad_row_stops_where_prepare_stops(adopt: Adopt, bad: str | dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=rf"given\.jsonl:2: .*{message}"):
        adopt(prompts(1), [log("row 0", "a"), bad], answers_bad_rows="stop")


def test_the_share_of_bad_rows_is_that_of_prepare(adopt: Adopt) -> None:
    given = [log(f"row {number}", "a") for number in range(38)] + [TORN] * 3
    with pytest.raises(BadRowsError, match=r"3 of 41 rows .*prepare.bad_share allows 0.05"):
        adopt(prompts(38), given)
    assert len(adopt(prompts(38), given, answers_bad_share=0.1)) == 38


def test_answers_that_cannot_be_used_are_judged_by_the_share_of_regenerate(
    adopt: Adopt,
) -> None:
    given = [log(f"row {number}", "a") for number in range(38)]
    given += [log(f"row {number}", "a") | {"finish_reason": "crashed"} for number in (38, 39, 40)]
    with pytest.raises(BadRowsError, match=r"3 of 41 rows .*regenerate.bad_share allows 0.05") as found:
        adopt(prompts(41), given)
    assert "given.jsonl:39: ended by 'crashed'" in str(found.value)
    assert [row["status"] for row in adopt(prompts(41), given, bad_share=1.0)].count("skipped") == 3


def test_a_file_without_an_answer_is_named_with_the_reasons(adopt: Adopt) -> None:
    thought = log("row 0", None)
    thought["messages"][1]["reasoning_content"] = "hm"
    with pytest.raises(SourceError, match=r"given\.jsonl: no answer can be adopted: 3 rows of answers read") as found:
        adopt(prompts(2), [thought, log("row 1"), TORN])
    assert "given.jsonl:1: only reasoning, no content" in str(found.value)
    assert "given.jsonl:3: not JSON" in str(found.value)


def test_of_several_answers_the_first_that_can_be_used_is_taken(adopt: Adopt, bench: Bench) -> None:
    failed = log("row 0", "cut by a filter") | {"finish_reason": "content_filter"}
    rows = adopt(prompts(1), [log("row 0", ""), failed, log("row 0", "good"), log("row 0", "later")])
    assert [row["messages"][1]["content"] for row in rows] == ["good"]
    told = "4 rows of answers read, 1 kept, dropped: 1 filtered, 1 no_answer, 1 duplicate"
    assert bench.heard.lines[0] == told


def test_rows_that_do_not_say_how_they_ended_are_told(adopt: Adopt, bench: Bench) -> None:
    adopt(prompts(2), [log("row 0", "a"), log("row 1", "b") | {"finish_reason": "stop"}])
    assert bench.heard.lines[1] == "1 of them do not say how an answer ended; taken as 'stop'"


def test_a_turn_of_weight_zero_is_context(adopt: Adopt) -> None:
    given = log("a?", "wrong", "c?", "d") | {"finish_reasons": ["length", "stop"], "token_ids": [[1], [2, 3]]}
    given["messages"][1] |= {"weight": 0, "reasoning_content": "hm"}
    (row,) = adopt([prompt("x", "a?", "c?")], [given])
    assert row["messages"][1] == {"role": "assistant", "content": "wrong"}
    assert (row["generated"], row["finish_reasons"], row["token_ids"]) == ([3], ["stop"], [[2, 3]])
    assert "reasoning" not in row


def test_a_row_without_a_supervised_turn_is_skipped(adopt: Adopt) -> None:
    given = log("a?", "b")
    given["messages"][1]["weight"] = 0
    row, _ = adopt([prompt("x", "a?"), *prompts(1)], [given, log("row 0", "a")])
    assert (row["status"], row["error"]) == ("skipped", "every turn of the answer has weight 0")


def test_the_day_of_the_plan_is_given_where_the_row_names_none(adopt: Adopt) -> None:
    own = log("row 0", "a") | {"date": "2024-03-05T10:00:00Z"}
    rows = adopt(prompts(2), [own, log("row 1", "b")], date=date(2025, 2, 1))
    assert [row["date"] for row in rows] == ["2024-03-05", "2025-02-01"]


LINES = (
    wild.ROWS.map(json.dumps)
    | wild.ANY_JSON.map(json.dumps)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20)
    | wild.ALMOST.map(json.dumps)
)


def conversations(lines: list[str]) -> Iterator[Conversation]:
    """Yield what can be read of lines, as prompts."""
    for line in lines:
        try:
            yield prompt_of(parse_conversation(json.loads(line)))
        except (ValueError, RecursionError, RowError, AttributeError):
            continue


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=6))
@example([json.dumps(row) for row in wild.KNOWN])
def test_no_input_row_ends_adoption(lines: list[str]) -> None:
    asked = [prompt("good", "row 1")]
    asked += [{"id": f"{n}", "split": "train", "source": "x", **each} for n, each in enumerate(conversations(lines))]
    with tempfile.TemporaryDirectory() as folder:
        bench, path = Bench(Path(folder)), Path(folder) / "given.jsonl"
        path.write_text("\n".join([json.dumps(log("row 1", "good")), *lines]) + "\n", encoding="utf-8")
        bench.spec = bench.spec.but(answers=checksum(path), answers_bad_share=1.0, bad_share=1.0)
        placement = bench.placement(locations={checksum(path): str(path)})
        rows = {row["id"]: row for row in published_rows(bench.regenerate(bench.publish(asked), placement))}
    assert rows["good"]["status"] == "success"
    assert len(rows) == len(asked)
    for row in rows.values():
        assert "Error" not in row.get("error", ""), "every kind of bad answer has its name"
        turns = [index for index, message in enumerate(row["messages"]) if message["role"] == "assistant"]
        assert set(row["generated"]) <= set(turns)
        assert len(row["finish_reasons"]) == len(row["generated"])
        assert (row["status"] == "success") == bool(row["generated"]) != ("error" in row)
        assert set(row["finish_reasons"]) <= {"stop", "length", "tool_calls"}


def test_the_shelf_keeps_the_first_that_can_be_used_and_leaves_nothing_behind(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.refuse(b"a", "no")
    assert [shelf.put(b"a", b'{"x": 1}'), shelf.put(b"a", b'{"x": 2}'), shelf.put(b"b", b'{"x": 3}')] == [
        True,
        False,
        True,
    ]
    shelf.refuse(b"b", "no")
    shelf.refuse(b"c", "no")
    shelf.refuse(b"c", "never")
    assert [shelf.find(key) for key in (b"a", b"b", b"c", b"d")] == [({"x": 1}, ""), ({"x": 3}, ""), ({}, "no"), None]
    shelf.close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_changed_or_is_gone_is_named(bench: Bench, tmp_path: Path) -> None:
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
