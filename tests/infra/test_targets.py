"""A target that has to be converted is made ready ahead of its run; what the run asks for by itself is not."""

from pathlib import Path

import pytest

from deepspec.target.source import TargetSource
from infra.children import targets


def told(source: TargetSource, models: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Return what is said, and the names of the targets that are made ready."""
    said, made = list[str](), list[str]()
    monkeypatch.setattr(targets, "models_dir", lambda: models)
    monkeypatch.setattr(targets, "ready_target", lambda source, name: made.append(name))
    targets.convert_target(source, "tiny", said.append)
    return said, made


def test_a_gguf_file_is_converted_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    assert told(TargetSource(model=str(file)), tmp_path / "models", monkeypatch) == (
        ["tiny is made ready for transformers, this once"],
        ["tiny"],
    )


def test_one_from_the_hub_and_a_folder_are_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("org/model", str(tmp_path)):
        assert told(TargetSource(model=model), tmp_path / "models", monkeypatch) == ([], [])
