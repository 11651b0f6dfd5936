"""What a store holds: states, named refs, and what may be deleted."""

from pathlib import Path

import pytest

from deepspec.artifacts import ArtifactRef, lineage
from deepspec.catalog import catalog, find, held_bytes, refs, set_ref
from deepspec.errors import NotPublishedError, SpecError
from deepspec.prepare.spec import PrepareSpec, Source
from deepspec.publish import Out, drop_artifact
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.specs import Spec, TargetId
from deepspec.stages import STAGES, address
from deepspec.store import Store
from deepspec.train.spec import TrainSpec
from tests.given.some import some


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, kind: str, digit: str, text: str = "x", **inputs: ArtifactRef) -> ArtifactRef:
    out = Out(store, kind, digit * 32, inputs, Path(store.root).parent / "scratch")
    out.file("a.txt").write_text(text)
    return out.publish(Spec(), 1, {})


def states(store: Store) -> dict[str, str]:
    return {entry.kind: entry.state for entry in catalog(store)}


def test_published_partial_stale_and_incomplete(store: Store, tmp_path: Path) -> None:
    prompts = publish(store, "prompts", "a")
    answers = publish(store, "answers", "b", prompts=prompts)
    publish(store, "target_cache", "c", answers=answers)
    out = Out(store, "draft", "d" * 32, {}, tmp_path)
    (tmp_path / "p").write_text("part")
    out.commit_part(0, 0, {"p": tmp_path / "p"}, {})
    assert states(store) == {
        "prompts": "published", "answers": "published", "target_cache": "published", "draft": "partial"
    }  # fmt: skip
    drop_artifact(store, "prompts", "a" * 32)
    publish(store, "prompts", "a", text="other")
    some(store.local_path(store.list("target_cache")[0])).unlink()
    assert states(store)["answers"] == "stale"
    assert states(store)["target_cache"] == "incomplete"


def test_the_rows_of_answers_are_accounted_for(store: Store, tmp_path: Path) -> None:
    out = Out(store, "answers", "e" * 32, {}, tmp_path)
    for part, (success, error, skipped) in enumerate([(8, 1, 1), (9, 1, 0), (7, 1, 1)]):
        (tmp_path / "p").write_text(f"part {part}")
        counts = {"input": 10, "success": success, "error": error, "skipped": skipped}
        out.commit_part(0, part, {f"p{part}": tmp_path / "p"}, counts)
    (entry,) = catalog(store)
    told = "3 parts committed: 17 success + 2 error + 1 skipped = 20 rows, 1 parts whose rows do not add up"
    assert entry.note == f"{told}; run again to go on"
    out.publish(Spec(), 1, {"input": 30, "success": 24, "error": 3, "skipped": 2})
    (entry,) = catalog(store)
    assert (entry.state, entry.note[:38]) == ("incomplete", "success + error + skipped is not input")


def test_baseline_moves_what_it_was_to_previous(store: Store) -> None:
    one, two = publish(store, "release", "1"), publish(store, "release", "2")
    set_ref(store, "baseline", one)
    set_ref(store, "baseline", two)
    assert find(store, "baseline") == two
    assert find(store, "previous") == one
    assert set(refs(store)) == {"baseline", "previous"}


def test_unknown_refs_and_bad_names_are_named(store: Store) -> None:
    with pytest.raises(NotPublishedError, match=r"nothing published in .* is called 'x'"):
        find(store, "x")
    with pytest.raises(SpecError, match="no name for a ref"):
        set_ref(store, "../x", publish(store, "draft", "1"))


def test_an_artifact_is_found_by_ref_kind_and_the_start_of_its_address(store: Store) -> None:
    ref = publish(store, "draft", "1")
    other = publish(store, "scores", "1")
    set_ref(store, "mine", ref)
    assert find(store, "mine") == find(store, "draft/11") == ref
    assert find(store, "scores/1") == other
    with pytest.raises(SpecError, match=r"may be draft/1+, scores/1+; give more"):
        find(store, "11")
    with pytest.raises(NotPublishedError, match="nothing published"):
        find(store, "draft/2")


@pytest.mark.parametrize("name", ["", "/", "draft/"])
def test_nothing_names_no_artifact_though_there_is_but_one(store: Store, name: str) -> None:
    """As by a variable of a script that was never set: `gc --artifact` would delete it."""
    publish(store, "draft", "1")
    with pytest.raises(NotPublishedError, match=f"nothing published in .* is called '{name}'"):
        find(store, name)


def test_lineage_is_everything_that_it_was_made_from(store: Store) -> None:
    prompts = publish(store, "prompts", "a")
    answers = publish(store, "answers", "b", prompts=prompts)
    publish(store, "answers", "c", prompts=prompts)
    assert set(lineage(store, [answers])) == {prompts.prefix, answers.prefix}


TARGET = TargetId(config="c", weights="w", tokenizer="t", template="t")


def test_the_bytes_that_a_run_finds_in_the_store_are_counted_also_of_parts(store: Store, tmp_path: Path) -> None:
    specs = {
        "prepare": PrepareSpec(sources=(Source(name="a", digest="b"),)),
        "regenerate": RegenerateSpec(target=TARGET),
        "train": TrainSpec(),
    }
    assert held_bytes(store, specs) == 0
    prompts = Out(store, "prompts", address(STAGES["prepare"], specs["prepare"], {}), {}, tmp_path)
    prompts.file("a.txt").write_text("x" * 1000)
    prompts.publish(specs["prepare"], 1, {})
    published = held_bytes(store, specs)
    assert published > 1000  # with its manifest
    answers = Out(
        store, "answers", address(STAGES["regenerate"], specs["regenerate"], {"prompts": prompts.address}), {}, tmp_path
    )
    (tmp_path / "p").write_text("y" * 500)
    answers.commit_part(0, 0, {"p": tmp_path / "p"}, {})
    assert held_bytes(store, specs) > published + 500
    assert held_bytes(store, {"train": TrainSpec()}) == 0
