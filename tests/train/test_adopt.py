"""A checkpoint that was trained elsewhere becomes a draft like any other, or is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.artifacts import open_artifact
from deepspec.decoding.pair import draft_folder
from deepspec.errors import CheckpointError
from deepspec.train.adopt import adopt
from tests.evaluate.published import given


@pytest.fixture
def case(tmp_path):
    """A target, and a draft of it whose folder is the checkpoint."""
    return given(tmp_path)


def adopted(case, folder, tmp_path):
    target = Path(case.placement.locations[case.target.digest])
    ref = adopt(str(folder), target, case.target, case.store, tmp_path / "scratch")
    return open_artifact(case.store, ref, tmp_path / "scratch")


def in_shards(folder, to):
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


def test_the_published_draft_has_the_checkpoints_weights_and_is_published_once(case, tmp_path):
    folder = draft_folder(case.draft, tmp_path / "scratch")
    first = adopted(case, folder, tmp_path)
    assert adopted(case, folder, tmp_path).ref == first.ref
    assert first.counts["adopted"] == folder.name  # no path of this machine
    assert first.counts["target"] == case.target.model_dump()
    shards = adopted(case, in_shards(folder, tmp_path / "shards"), tmp_path)
    assert shards.ref.address != first.ref.address
    for made in (first, shards):
        torch.testing.assert_close(
            load_file(made.path("model.safetensors")), load_file(folder / "model.safetensors"), rtol=0, atol=0
        )


@pytest.mark.parametrize("fault", ["another target", "not finite"])
def test_a_checkpoint_that_is_not_sound_is_refused(case, tmp_path, fault):
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
