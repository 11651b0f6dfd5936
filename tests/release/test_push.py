"""Pushing a release: into another store byte for byte, to the hub as a repository that engines load."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import open_artifact, read_manifest
from deepspec.checkpoint.draft import load_draft
from deepspec.errors import SpecError
from deepspec.evaluate.again import scores_of
from deepspec.release import push as pushing
from deepspec.release.push import push
from deepspec.store import Store
from tests.release.test_run import release


def test_another_store_holds_the_same_release(tmp_path: Path) -> None:
    published, _, card = release(tmp_path)
    where = push(published, str(tmp_path / "other"), tmp_path / "scratch")
    other = Store(tmp_path / "other")
    assert where == other.uri(published.prefix)
    again = open_artifact(other, published.ref, tmp_path / "scratch")
    assert again.manifest == published.manifest
    assert again.read_bytes("README.md").decode() == card
    assert published.read_bytes("sglang__config.json") == again.read_bytes("sglang__config.json")
    assert not list((tmp_path / "scratch" / "pushed").iterdir())


def test_a_release_is_evaluated_again_where_it_was_pushed_to(tmp_path: Path) -> None:
    published, _, _ = release(tmp_path)
    released = read_manifest(published.store, "draft", published.manifest.inputs["draft"].address)
    other = Store(tmp_path / "other")
    for _ in range(2):  # what is there stays as it is
        push(published, other.root, tmp_path / "scratch")
    shutil.rmtree(published.store.root)
    draft = open_artifact(other, scores_of(other, published.ref).inputs["draft"], tmp_path / "elsewhere")
    assert draft.manifest == released
    assert load_draft(draft.path("config.json").parent).config.block_size == 7


class Hub:
    """Stands for the hub: keeps what is uploaded."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def create_repo(self, name: str, **options: Any) -> str:
        self.told.append((name, options))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.told.append(
            (repo_id, sorted(str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()))
        )


def test_a_repository_has_the_public_form_at_its_root_and_the_others_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, _, card = release(tmp_path)
    hub = Hub()
    monkeypatch.setattr(pushing, "HfApi", lambda: hub)
    assert push(published, "hf:ORG/draft", tmp_path / "scratch", private=True) == "https://hub/ORG/draft"
    assert hub.told[0] == ("ORG/draft", {"private": True, "exist_ok": True})
    files = hub.told[1][1]
    assert {"README.md", "config.json", "model.safetensors", "report.html", "provenance.json", "scores.json"} <= set(
        files
    )
    assert {"vllm/config.json", "sglang/model.safetensors", "llama.cpp/draft.gguf"} <= set(files)
    assert not [name for name in files if "__" in name]
    folder = tmp_path / "scratch" / "pushed" / published.manifest.address
    assert (folder / "README.md").read_text() == card
    assert load_draft(folder).config.block_size == 7


def test_only_releases_are_pushed(tmp_path: Path) -> None:
    published, _, _ = release(tmp_path)
    manifest = read_manifest(published.store, "draft", published.manifest.inputs["draft"].address)
    assert manifest is not None
    draft = open_artifact(published.store, published.manifest.inputs["draft"], tmp_path)
    with pytest.raises(SpecError, match="is of kind draft; wanted a release"):
        push(draft, str(tmp_path / "other"), tmp_path)
