"""What a plan names by its name is looked at before it is needed: caches, drafts, earlier drafts, the baseline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import read_manifest
from deepspec.checkpoint.config import write_draft_config
from deepspec.checkpoint.new import new_draft_config
from deepspec.errors import InputError
from deepspec.families import read_folder
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.formats.tensor_heads import POINTER
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.store import Store
from tasks.resolve import begun
from tests.given.drafts.recipes import sized
from tests.given.published.caches import build, publish_answers, rows, spec_for
from tests.given.published.evaluated import given as given_draft
from tests.given.targets.tiny import MASK
from tests.plan.placed import choices, edit, refused, site, told


@pytest.fixture
def published(place: Path) -> tuple[Path, Store, str]:
    """Return the place with a published cache of its target, and its name."""
    store = Store(place / "store")
    target = place / "target"
    ref = build(spec_for(target), target, publish_answers(store, place, [rows(25)]), store, place)
    return place, store, ref.prefix


def test_a_cache_of_this_target_is_taken(published: tuple[Path, Store, str]) -> None:
    place, _, name = published
    run = begun(choices(place, f"dataset.cache={name}", 'export.forms=["deepspec"]').plan, site(place))
    assert run.told == ()


def test_a_cache_that_does_not_fit_is_refused(published: tuple[Path, Store, str]) -> None:
    place, store, name = published
    manifest = read_manifest(store, *name.split("/"))
    assert manifest is not None
    option = f"dataset.cache={name}"
    config = (place / "target" / "config.json").read_text()
    edit(place / "target" / "config.json", rope_theta=5.0)
    assert f"{name} was made by another target than" in refused(place, option)
    (place / "target" / "config.json").write_text(config)

    def changed(address: str, **counts: Any) -> str:
        out = Out(store, "target_cache", address, {}, place)
        out.file("x").write_bytes(b"x")
        out.publish(Spec(), 1, {**manifest.counts, **counts})
        return f"dataset.cache=target_cache/{address}"

    assert "holds tokens only; set train.source=online" in refused(place, changed("a1", codec="none"))
    rolling = ("train.source=rolling", "cache.codec=none")
    assert "was imported and has no forward passes" in refused(place, changed("a2"), *rolling)
    assert "layers, hidden size, vocabulary are (6, 32, 264)" in refused(place, changed("a3", num_layers=9))
    splits = {"train": {"samples": 4, "tokens": 40, "supervised": 9}}
    assert "there is nothing to judge by" in refused(place, changed("a4", splits=splits), "train.keep=best")
    empty = {"train": {"samples": 4, "tokens": 40, "supervised": 0}}
    assert "supervises nothing in training" in refused(place, changed("a5", splits=empty))
    assert "has no mask token" in refused(place, changed("a6", mask_token_id=None, mask_token_advice="none"))
    other = {**manifest.counts["target"], "weights": "0" * 32}
    option = changed("a7", target=other)
    told(place, option)  # weights are hashed when the run resolves
    with pytest.raises(InputError, match=r"another target than .*: weights differ"):
        begun(choices(place, option).plan, site(place))
    store.delete(f"{name}/{next(iter(manifest.files.values())).key}")
    assert "is not complete: files of it are gone" in refused(place, f"dataset.cache={name}")


def test_a_cache_of_the_targets_copy_is_taken(published: tuple[Path, Store, str]) -> None:
    place, _, name = published
    shutil.move(place / "target", place / "elsewhere")
    begun(choices(place, f"dataset.cache={name}", target=str(place / "elsewhere")).plan, site(place))


@pytest.fixture
def drafted(place: Path) -> Path:
    """Return the place with a published draft `draft/aaa…` of a target like the one there."""
    case = given_draft(place / "made")
    shutil.copytree(case.store.root, place / "store")
    return place


DRAFT = "a" * 32


def test_a_published_draft_of_this_shape_is_taken(drafted: Path) -> None:
    told(drafted, "draft=draft/aaaa", "cache.layers=[99]")  # nothing is captured
    message = refused(drafted, "draft=draft/aaaa", "evaluate.slots=9")
    assert "evaluate.slots is 9: the draft proposes 4 tokens at a time" in message
    edit(drafted / "target" / "config.json", num_hidden_layers=5)
    assert "the draft is for another target: num_target_layers 6, the target's is 5" in refused(
        drafted, "draft=draft/aaaa"
    )


def test_a_checkpoint_in_a_folder_is_held_against_the_target(drafted: Path) -> None:
    (folder,) = (drafted / "store" / "draft" / DRAFT).glob("attempt*")
    told(drafted, draft=str(folder))
    (folder / "model.safetensors").write_bytes(POINTER + b"v1\n")
    assert "is a git-lfs pointer" in refused(drafted, draft=str(folder))
    (folder / "config.json").write_text("{}")
    assert "neither" not in refused(drafted, draft=str(folder))
    told(drafted, draft="some/draft")  # the hub is asked by the run


def published_draft(place: Path, address: str, layers: tuple[int, ...] = (1, 2), **recipe: Any) -> None:
    """Publish config and empty weights of a draft for the target of the place; `adopted`: without optimizer state."""
    adopted = recipe.pop("adopted", False)
    wanted = DraftRecipe(**sized(recipe.get("algorithm", "dspark"), num_layers=2, markov_rank=128) | recipe)
    mask = None if wanted.algorithm == "eagle3" else MASK + 1
    config = new_draft_config(read_folder(place / "target"), wanted, layers, mask, Objective())
    out = Out(Store(place / "store"), "draft", address, {}, place)
    out.file("config.json").write_text(json.dumps(write_draft_config(config)))
    for name in ("model.safetensors", "training_state.safetensors")[: 2 - adopted]:
        out.file(name).write_bytes(b"x")
    out.publish(Spec(), 1, {})


EARLIER: dict[str, tuple[dict[str, Any], str]] = {
    "alike": ({}, ""),
    "longer blocks": ({"block_size": 9}, ""),
    "another algorithm": ({"algorithm": "eagle3", "num_layers": 1}, "draft b is eagle3, this run trains dspark"),
    "other layers": ({"layers": (0, 3)}, "reads layers [0, 3], this run captures [1, 2]"),
    "fewer blocks": ({"num_layers": 1}, "num_layers is 1, wanted 2; set train.draft to its shape"),
    "another rank": ({"markov_rank": 8}, "markov_rank is 8, wanted 128"),
    "no Markov head": ({"markov_rank": 0}, "markov_rank is 0, wanted 128"),
    "another Markov head": ({"markov_head": "gated"}, "markov_head is gated, wanted vanilla"),
    "no confidence": ({"confidence_head": False}, "confidence_head is False, wanted True"),
    "a smaller head": ({"draft_vocab_size": 64}, "draft_vocab_size is 64, wanted 264"),
}
"""What an earlier draft is -> what is said of it; empty: it is taken."""


@pytest.mark.parametrize("case", EARLIER)
@pytest.mark.parametrize("setting", ["continue_from", "warm_start"])
def test_an_earlier_draft_is_held_against_the_new_one(place: Path, setting: str, case: str) -> None:
    traits, message = EARLIER[case]
    published_draft(place, "b", **traits)
    option = f"train.{setting}=b"
    if message:
        assert message in refused(place, option)
    else:
        told(place, option)


def test_an_earlier_draft_needs_what_is_taken_of_it(place: Path) -> None:
    published_draft(place, "b", adopted=True)
    told(place, "train.warm_start=b")
    message = refused(place, "train.continue_from=b")
    assert "has no optimizer state, it was trained elsewhere; set train.warm_start" in message
    for setting in ("continue_from", "warm_start"):
        assert "is not published; wanted the whole address" in refused(place, f"train.{setting}=c")


def test_an_earlier_draft_that_saw_another_part_of_the_context_is_told(place: Path) -> None:
    published_draft(place, "b", window=64)
    (line,) = [line for line in told(place, "train.warm_start=b") if "context" in line]
    assert "layers of draft b saw 64 positions of the context, those of this run see all of it" in line
    assert not any("of the context" in line for line in told(place, "train.warm_start=b", "train.draft.window=64"))


def test_a_baseline_without_scores_is_refused(place: Path) -> None:
    store = Store(place / "store")
    scores = Out(store, "scores", "s1", {}, place)
    scores.file("x").write_bytes(b"x")
    ref = scores.publish(Spec(), 1, {})

    class Made(Spec):
        target: str

    release = Out(store, "release", "r1", {"scores": ref}, place)
    release.file("x").write_bytes(b"x")
    made = release.publish(Made(target="target"), 1, {})
    store.write_bytes("refs/baseline.json", made.model_dump_json().encode())
    told(place)
    store.delete("scores/s1/manifest.json")
    assert "the ref baseline names a release whose scores" in refused(place)
