"""Caches in the public DeepSpec form are read and imported as they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepspec.artifacts import open_artifact
from deepspec.brought.public_form import PublicCache
from deepspec.records.batch import collate, supervises
from deepspec.store import Store
from deepspec.target.load import load_target
from deepspec.target_cache.cache import TargetCache
from deepspec.train.checked import check_states
from tests.given.golden import MISSING, root
from tests.given.golden import target as golden_target
from tests.given.heard import Heard
from tests.given.published.brought import import_folder
from tests.given.published.caches import placement_for


def folders() -> list[object]:
    """Return the folders that hold a public cache beside what it was made from."""
    base = root()
    if base is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason=MISSING))]
    found = sorted(path.parent for path in base.rglob("cache_dir"))
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no cache_dir under {base}"))]
    return [pytest.param(path, id=path.name) for path in found]


@pytest.mark.parametrize("folder", folders())
def test_public_records_hold_what_they_were_made_from(folder: Path) -> None:
    source = load_file(folder / "source.safetensors")
    cache = PublicCache(folder / "cache_dir")
    assert len(cache) == json.loads((folder / "expected.json").read_text())["num_samples"]
    for number, record in enumerate(cache):
        assert torch.equal(record.input_ids, source[f"{number}.input_ids"].long())
        assert torch.equal(record.loss_mask, source[f"{number}.loss_mask"].bool())
        assert torch.equal(record.hidden, source[f"{number}.target_hidden_states"])
        kept = supervises(record.loss_mask)
        assert torch.equal(record.last_hidden, source[f"{number}.target_last_hidden_states"][kept])


@pytest.mark.parametrize("folder", folders())
def test_collated_batches_agree(folder: Path) -> None:
    expected = load_file(folder / "collated_0_3.safetensors")
    cache = PublicCache(folder / "cache_dir")
    batch = collate([cache.record(0), cache.record(3)])
    assert torch.equal(batch.input_ids, expected["input_ids"].long())
    assert torch.equal(batch.loss_mask, expected["loss_mask"].bool())
    assert torch.equal(batch.ends[:, 0], expected["attention_mask"].sum(1).long())
    assert torch.equal(batch.hidden, expected["target_hidden_states"])
    kept = torch.stack([supervises(mask) for mask in batch.loss_mask])
    assert torch.equal(batch.last_hidden, expected["target_last_hidden_states"] * kept[..., None])


@pytest.mark.parametrize("folder", folders())
def test_import_keeps_every_state_that_training_reads(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "cache_dir" / "manifest.json").read_text())
    place = golden_target(manifest["target_model_name_or_path"])
    public, store = PublicCache(folder / "cache_dir"), Store(tmp_path / "root")
    ref = import_folder(folder / "cache_dir", place, {"part_bytes": 100_000}, store, tmp_path, Heard())
    artifact = open_artifact(store, ref, tmp_path)
    cache = TargetCache(artifact, tmp_path)
    check_states(artifact, cache, range(len(cache)), placement_for(place, tmp_path))  # training would accept it
    assert cache.facts.layers == tuple(manifest["target_layer_ids"])
    assert cache.numbers("train").tolist() == list(range(len(public)))
    for number, given in enumerate(public):
        record = cache.record(number)
        assert torch.equal(record.hidden, given.hidden)
        assert torch.equal(record.last_hidden, given.last_hidden)


@pytest.mark.parametrize("folder", folders())
def test_public_states_are_what_we_capture(folder: Path) -> None:
    """The same layers, concatenated in the same order, the last one after the final norm; theirs ran in bf16."""
    manifest = json.loads((folder / "cache_dir" / "manifest.json").read_text())
    target = load_target(golden_target(manifest["target_model_name_or_path"]), "bfloat16")
    for given in PublicCache(folder / "cache_dir"):
        hidden, last = target.capture(given.input_ids[None], manifest["target_layer_ids"])
        for ours, theirs in ((hidden[0], given.hidden), (last[0][supervises(given.loss_mask)], given.last_hidden)):
            error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
            assert error < 0.05  # other kernels round bf16 otherwise; a wrong layer would be near 1
