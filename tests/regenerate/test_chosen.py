"""Held-out prompts alone are answered where a spec says so: a few, whatever order they come in, and no others."""

from typing import Any

import pytest

from deepspec.artifacts import open_artifact
from deepspec.asking.sampling import Sampling
from deepspec.messages.conversations import published_rows
from deepspec.publish import drop_artifact
from deepspec.regenerate.chosen import chosen_prompts
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import TargetId, address_of
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompt

SPLITS = ("train", "validation", "test")


def rows(count: int) -> list[dict[str, Any]]:
    return [{**prompt(f"id-{number}", f"row {number}"), "split": SPLITS[number % 3]} for number in range(count)]


def chosen(bench: Bench, prompts: list[dict[str, Any]], held_out: int | None) -> list[str]:
    drop_artifact(bench.store, "prompts", "0" * 32)
    ref = bench.publish(prompts)
    return [row["id"] for row in chosen_prompts(open_artifact(bench.store, ref, bench.folder), held_out)]


def test_as_many_of_the_validation_split_are_chosen_as_asked_for(bench: Bench) -> None:
    held_out = {row["id"] for row in rows(60) if row["split"] == "validation"}
    found = chosen(bench, rows(60), 7)
    assert len(found) == len(set(found)) == 7
    assert set(found) < held_out
    assert set(chosen(bench, rows(60), 100)) == held_out
    assert chosen(bench, rows(60), None) == [row["id"] for row in rows(60)]


def test_which_they_are_hangs_on_their_ids_alone(bench: Bench) -> None:
    found = chosen(bench, rows(60), 7)
    assert chosen(bench, rows(60)[::-1], 7) == found
    assert chosen(bench, rows(60), 3) == found[:3]
    assert chosen(bench, rows(1), 7) == [], "none is held out"


def test_they_can_be_gone_through_twice(bench: Bench) -> None:
    found = chosen_prompts(open_artifact(bench.store, bench.publish(rows(9)), bench.folder), 2)
    assert list(found) == list(found) != []


def test_the_engine_is_asked_them_and_nothing_else_and_all_are_accounted_for(bench: Bench) -> None:
    bench.spec = bench.spec.but(held_out=4, sampling=Sampling(temperature=0.0, max_tokens=16), rows_per_part=3)
    with serve(Simulated()) as (one,):
        made = bench.regenerate(bench.publish(rows(30)), bench.placement(one.engine.url))
    asked = [body["messages"][0]["content"] for body in one.engine.row_bodies]
    assert len(asked) == 4
    assert {body["temperature"] for body in one.engine.row_bodies} == {0.0}
    assert made.counts["success"] == made.counts["input"] == 4
    assert {row["split"] for row in published_rows(made)} == {"validation"}


@pytest.mark.parametrize("changes", [{}, {"held_out": None}, {"held_out": 5}])
def test_an_address_knows_of_them_and_that_of_all_prompts_is_what_it_was(changes: dict[str, Any]) -> None:
    spec = RegenerateSpec(target=TargetId(config="c", weights="w", tokenizer="t", template="p"))
    same = address_of("answers", 2, spec, {}) == address_of("answers", 2, spec.but(**changes), {})
    assert same == (changes.get("held_out") is None)
