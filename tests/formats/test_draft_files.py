"""A published draft as a folder of links, which several runs may make and read at once."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from deepspec.formats.draft_files import link_draft
from tests.evaluate.published import given


@pytest.fixture
def draft(tmp_path):
    return given(tmp_path).draft


def test_a_folder_of_links_is_a_checkpoint(draft, tmp_path):
    folder = link_draft(draft, tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "embed_tokens.weight" in load_file(folder / "model.safetensors")


def test_a_link_that_another_run_reads_through_is_never_missing(draft, tmp_path, monkeypatch):
    folder = link_draft(draft, tmp_path / "links")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "stale")
    replaced: list[str] = []
    replace = Path.replace

    def watched(self: Path, to: Path) -> Path:
        assert to.is_symlink()
        replaced.append(to.name)
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", watched)
    monkeypatch.setattr(Path, "unlink", lambda self, **told: pytest.fail("a link was taken away"))
    link_draft(draft, folder)
    assert replaced == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_bytes() == draft.path("config.json").read_bytes()
