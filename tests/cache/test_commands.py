"""`deepspec cache verify | stat | import`, as a user calls them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.artifacts import open_artifact, read_manifest
from deepspec.store import Store
from tests.cache.test_public import write
from tests.given.published.caches import build, opened, publish_answers, rows, spec_for


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_only_what_is_damaged_is_made_again(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(12), rows(12, seed=1)])
    spec = spec_for(target, part_bytes=60_000)
    ref = build(spec, target, answers, store, tmp_path)
    options = ("target_cache/c", "--root", store.root, "--target", str(target))
    code, told = call("verify", *options, "--recompute", "2")
    assert (code, "sound; 24 samples read, 2 computed again" in told) == (0, True)

    artifact = open_artifact(store, ref, tmp_path)
    name = opened(ref, store, tmp_path).index.part_of(20)
    damaged = Path(store.root, ref.prefix, artifact.entry(name).key)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, told = call("verify", *options, "--recompute", "0", "--repair")
    assert code == 1
    assert name in told
    assert "deleted 1 damaged files" in told

    again = build(spec, target, answers, store, tmp_path)
    manifest = read_manifest(store, "target_cache", "c")
    assert manifest is not None
    moved = {file for file, entry in manifest.files.items() if entry.key != artifact.entry(file).key}
    assert moved == {name, "index.parquet", "kinds.json"}
    assert again.content == ref.content


def test_stat_shows_what_each_rule_saved(target: Path, store: Store, tmp_path: Path) -> None:
    build(spec_for(target), target, publish_answers(store, tmp_path, [rows(10)]), store, tmp_path)
    code, told = call("stat", "target_cache/c", "--root", store.root)
    assert code == 0
    assert {"hidden size", "nothing after the last supervised token", "codec bf16-zstd"} <= {
        cell.strip() for line in told.splitlines() for cell in line.split("│")
    }


def test_an_import_is_published_and_the_same_the_second_time(target: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    folder = write(tmp_path / "public", width=32)
    words = ("import", str(folder), "--target", str(target), "--codec", "bf16", "--root", store.root)
    first, second = call(*words), call(*words)
    assert first[0] == second[0] == 0
    (address,) = {key.split("/")[1] for key in store.list("target_cache")}
    assert address in second[1]
    assert read_manifest(store, "target_cache", address).counts["samples"] == 1  # type: ignore[union-attr]
