"""`deepspec gc`, as a user calls it: shown first, deleted when asked."""

from pathlib import Path

from typer.testing import CliRunner

from cli.main import app
from deepspec.catalog import set_ref
from deepspec.store import Store
from tests.given.published.caches import publish_answers, rows


def gc(store: Store, *words: str) -> str:
    result = CliRunner().invoke(app, ["gc", "--root", store.root, "--older-than", "0", *words])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())  # lines end where the terminal does


def test_garbage_is_shown_first_and_deleted_when_asked(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept, lost = (publish_answers(store, tmp_path, [rows(2)], digit * 32) for digit in "ab")
    set_ref(store, "baseline", kept.ref)
    store.write_bytes(f"{kept.prefix}/killed/half", bytes(3000))
    assert "0 artifacts, 1 files and 0 unfinished uploads would be deleted; add --yes to do it" in gc(store)
    assert f"left behind {kept.prefix}/killed/half: 3 kB" in gc(store)
    assert "1 artifacts, 1 files and 0 unfinished uploads would be" in gc(store, "--unreferenced")
    assert store.exists(f"{lost.prefix}/manifest.json")

    assert "deleted 1 artifacts, 1 files" in gc(store, "--unreferenced", "--yes")
    assert store.list("answers") == sorted(
        [f"{kept.prefix}/manifest.json", *(f"{kept.prefix}/{entry.key}" for entry in kept.manifest.files.values())]
    )
