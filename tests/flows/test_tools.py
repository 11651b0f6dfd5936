"""`deepspec inspect`: what lies in a folder, and whether its ends are those of its target."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.main import app
from infra import terminal
from tests.given.published.evaluated import Given, given


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
