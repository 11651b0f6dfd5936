"""`deepspec inspect`: what lies in a folder, and whether its ends are those of its target. And `unpack`."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.main import app
from deepspec.export.run import read_source
from infra import terminal
from tests.given.drafts.foreign import LAYERS, specforge, write_target
from tests.given.drafts.written import write_draft
from tests.given.published.evaluated import Given, given
from tests.given.published.exports import publish_exports


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(terminal._out, "width", 300)
    return given(tmp_path)


def inspected(folder: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["inspect", str(folder), *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_draft_is_held_against_its_target_where_one_is_given(case: Given) -> None:
    folder = case.draft.path("model.safetensors").parent
    target = case.placement.locations[case.target.digest]
    assert "distance" not in inspected(folder)
    assert "embedding 0, head 0" in inspected(folder, "--target", target)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"].flip(0)}, folder / "model.safetensors")
    assert "The draft's head is not the target's" in inspected(folder, "--target", target)


def test_a_pointer_is_named(case: Given) -> None:
    folder = case.draft.path("model.safetensors").parent
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "NOT usable" in inspected(folder)
    assert "git lfs pull" in inspected(folder)


@pytest.fixture
def forged(tmp_path: Path) -> tuple[Path, Path]:
    """Return a draft as SpecForge writes it, and its target."""
    source = read_source(write_draft(tmp_path / "draft", "eagle3_llama"), "ORG/target", None)
    return specforge(source, tmp_path / "form"), write_target(tmp_path / "target", source)


def told(folder: Path, *words: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(inspected(folder, "--json", *words))
    return found


def test_a_draft_of_specforge_says_what_it_is_as_far_as_it_knows(forged: tuple[Path, Path]) -> None:
    """It does not know how many layers its target has: with that, it is one of ours."""
    folder, target = forged
    alone = told(folder)
    assert alone["architectures"] == "['LlamaForCausalLMEagle3']"
    assert alone["form"].startswith("as SpecForge writes it; it is read by evaluate, export, run and parity")
    assert not alone.keys() & {"algorithm", "weights", "why it is no draft in DeepSpec's form"}
    whole = told(folder, "--target", str(target))
    assert (whole["form"], whole["algorithm"]) == ("as SpecForge writes it", "eagle3")
    assert whole["target"] == f"{LAYERS} layers, captured [1, 3, 5]"
    assert whole["weights"] == "model.safetensors: all there"
    assert whole["distance from the target's own (relative)"] == "embedding 0, head 0"


def test_a_draft_of_specforge_may_leave_its_embedding_to_the_target(forged: tuple[Path, Path]) -> None:
    folder, target = forged
    tensors = load_file(folder / "model.safetensors")
    del tensors["embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert told(folder, "--target", str(target))["weights"] == "model.safetensors: all there"


def test_weights_of_specforge_that_are_not_there_are_named(forged: tuple[Path, Path]) -> None:
    folder, target = forged
    tensors = load_file(folder / "model.safetensors")
    del tensors["midlayer.hidden_norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    lacking = told(folder, "--target", str(target))["weights"]
    assert lacking.startswith("NOT usable: ")
    assert "the weights lack layers.0.hidden_norm.weight, which config.json asks for" in lacking


def test_a_variant_of_specforge_that_is_not_read_says_which_key(forged: tuple[Path, Path]) -> None:
    folder, target = forged
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_output": False}))
    found = told(folder, "--target", str(target))
    assert "norm_output: false" in found["why it is no draft in DeepSpec's form"]
    assert "algorithm" not in found


@pytest.mark.parametrize(("kind", "untold"), [("eagle3_llama_near", True), ("eagle3_llama", False)])
def test_who_lays_a_folder_out_is_told_what_its_engine_reads_from_no_file(
    kind: str, untold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(terminal._out, "width", 300)
    exports, _, _ = publish_exports(tmp_path, kind, forms=("sglang",))
    words = ["unpack", exports.prefix, "sglang", str(tmp_path / "form"), "--root", str(tmp_path / "store")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert ("serve it with --speculative-draft-window-size 63" in result.output) == untold
