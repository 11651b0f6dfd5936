"""Every prompt becomes one row, in order, whatever the engines do."""

import pytest

from deepspec.errors import EngineError
from deepspec.publish import drop_artifact
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompts


def test_every_prompt_is_answered_once_and_in_order(bench: Bench) -> None:
    with serve(Simulated(), Simulated()) as (one, other):
        rows = bench.answers(prompts(35), one.engine.url, other.engine.url)
    assert [row["id"] for row in rows] == [f"id-{number}" for number in range(35)]
    assert {row["status"] for row in rows} == {"success"}
    assert one.engine.row_bodies
    assert other.engine.row_bodies
    first = rows[0]
    assert first["messages"][1]["content"].endswith(" answered")
    assert first["generated"] == [1]
    assert first["finish_reasons"] == ["stop"]
    assert first["token_ids"] == [[0, 1, 2]]
    assert first["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert first["endpoint"].startswith("127.0.0.1:")


def test_no_endpoint_is_an_error_that_says_what_to_do(bench: Bench) -> None:
    with pytest.raises(EngineError, match="--endpoint"):
        bench.answers(prompts(1))


def test_the_manifest_tells_counts_and_sampling(bench: Bench) -> None:
    with serve(Simulated()) as (engine,):
        artifact = bench.regenerate(bench.publish(prompts(25)), bench.placement(engine.engine.url))
    assert artifact.names() == ["part-00000.jsonl.zst", "part-00001.jsonl.zst", "part-00002.jsonl.zst"]
    assert (artifact.counts["input"], artifact.counts["success"], artifact.counts["turns"]) == (25, 25, 25)
    assert artifact.counts["endpoints"] == {f"127.0.0.1:{engine.engine.port}/v1": 25}
    assert artifact.counts["sampling"]["temperature"] == 0.7


def test_progress_ends_with_all_rows_and_a_table_of_the_endpoints(bench: Bench) -> None:
    with serve(Simulated(), Simulated()) as (one, other):
        bench.answers(prompts(25), one.engine.url, other.engine.url)
    assert bench.heard.steps[-1] == (25, 25)
    table = bench.heard.tables["endpoints"]
    assert [row["state"] for row in table] == ["up", "up"]
    assert sum(row["answers"] for row in table) == 25


def test_the_same_is_asked_again_after_the_answers_are_lost(bench: Bench) -> None:
    ref = bench.publish(prompts(12))
    with serve(Simulated()) as (engine,):
        bench.regenerate(ref, bench.placement(engine.engine.url))
        first = {body["messages"][0]["content"]: body["seed"] for body in engine.engine.row_bodies}
        drop_artifact(bench.store, "answers", "1" * 32)
        engine.engine.bodies.clear()
        bench.regenerate(ref, bench.placement(engine.engine.url))
        again = {body["messages"][0]["content"]: body["seed"] for body in engine.engine.row_bodies}
    assert first == again
    assert len(set(first.values())) == 12
