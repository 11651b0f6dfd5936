"""A checkpoint that was trained elsewhere becomes a draft like any other, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.artifacts import Artifact, open_artifact
from deepspec.brought.draft import lines
from deepspec.checkpoint.ends import ends_apart
from deepspec.decoding.pair import draft_folder
from deepspec.errors import CheckpointError
from tests.given.heard import Heard
from tests.given.published.brought import adopt
from tests.given.published.evaluated import Given, given


@pytest.fixture
def case(tmp_path: Path) -> Given:
    """A target, and a draft of it whose folder is the checkpoint."""
    return given(tmp_path)


def adopted(case: Given, folder: Path, tmp_path: Path) -> Artifact:
    target = Path(case.placement.locations[case.target.digest])
    ref = adopt(str(folder), target, case.target, case.store, tmp_path / "scratch", Heard())
    draft = open_artifact(case.store, ref, tmp_path / "scratch")
    said = lines(draft.counts)
    assert said[0].startswith("the draft's distance from the target's own (relative): embedding ")
    assert [line.removeprefix("warning: ") for line in said[1:]] == draft.counts["warnings"]
    return draft


def in_shards(folder: Path, to: Path) -> Path:
    """Write a checkpoint again with its weights in two files."""
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    placed = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, to / file)
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return to


def test_the_published_draft_has_the_checkpoints_weights_and_is_published_once(case: Given, tmp_path: Path) -> None:
    folder = draft_folder(case.draft, tmp_path / "scratch")
    first = adopted(case, folder, tmp_path)
    assert adopted(case, folder, tmp_path).ref == first.ref
    assert first.counts["adopted"] == folder.name  # no path of this machine
    assert first.counts["target"] == case.target.model_dump()
    shards = adopted(case, in_shards(folder, tmp_path / "shards"), tmp_path)
    assert shards.ref.address != first.ref.address
    assert first.counts["warnings"] == []
    assert first.counts["apart"] == {"embedding": 0.0, "head": 0.0}, "copies of the target's"
    for made in (first, shards):
        torch.testing.assert_close(
            load_file(made.path("model.safetensors")), load_file(folder / "model.safetensors"), rtol=0, atol=0
        )


@pytest.mark.parametrize("fault", ["another target", "not finite"])
def test_a_checkpoint_that_is_not_sound_is_refused(case: Given, tmp_path: Path, fault: str) -> None:
    folder = in_shards(draft_folder(case.draft, tmp_path / "scratch"), tmp_path / "copy")
    if fault == "another target":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 8 * config["hidden_size"]}))
    else:
        tensors = load_file(folder / "model-0.safetensors")
        name = next(name for name in sorted(tensors) if name != "embed_tokens.weight")
        save_file({**tensors, name: tensors[name] * torch.nan}, folder / "model-0.safetensors")
    with pytest.raises(CheckpointError, match="hidden_size" if fault == "another target" else "NaN"):
        adopted(case, folder, tmp_path)


def changed(case: Given, tmp_path: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Return the checkpoint with one of its tensors changed."""
    folder = draft_folder(case.draft, tmp_path / "scratch")
    copy = tmp_path / "changed"
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: change(tensors[name])}, copy / "model.safetensors")
    return copy


@pytest.mark.parametrize("name", ["embed_tokens.weight", "lm_head.weight"])
def test_what_is_not_the_targets_is_told_counted_and_published(case: Given, tmp_path: Path, name: str) -> None:
    """Against a copy with every value doubled the distance is the norm of the target over itself: 1."""
    end = {"embed_tokens.weight": "embedding", "lm_head.weight": "head"}[name]
    draft = adopted(case, changed(case, tmp_path, name, lambda tensor: 2 * tensor), tmp_path)
    assert draft.counts["apart"][end] == pytest.approx(1.0)
    (line,) = draft.counts["warnings"]
    assert f"The draft's {end} is not the target's (relative distance" in line
    assert adopted(case, tmp_path / "changed", tmp_path).ref == draft.ref, "said again, published once"


def test_rounding_and_a_little_fine_tuning_are_no_reason_to_warn(case: Given, tmp_path: Path) -> None:
    folder = changed(case, tmp_path, "embed_tokens.weight", lambda tensor: (1.05 * tensor).bfloat16().float())
    draft = adopted(case, folder, tmp_path)
    assert draft.counts["apart"]["embedding"] == pytest.approx(0.05, rel=0.02)
    assert draft.counts["warnings"] == []


def test_a_reduced_head_is_held_against_the_rows_of_its_tokens(tmp_path: Path) -> None:
    case = given(tmp_path, draft_vocab_size=8)
    folder = draft_folder(case.draft, tmp_path / "scratch")
    target = Path(case.placement.locations[case.target.digest])
    weights = load_file(folder / "model.safetensors")
    known = weights["d2t"] + torch.arange(8)
    assert ends_apart(folder, target) == {"embedding": 0.0, "head": 0.0}
    rows = load_file(target / "model.safetensors")["model.embed_tokens.weight"][known]
    wrong = rows.roll(1, 0)
    copy = changed(case, tmp_path, "lm_head.weight", lambda tensor: wrong)
    assert ends_apart(copy, target)["head"] == pytest.approx(float((wrong - rows).norm() / rows.norm()))
