"""The whole run on an S3 server, killed while it captures, and resumed."""

import shutil
from pathlib import Path

import pytest

from deepspec.artifacts import open_artifact
from deepspec.cache.verify import verify_cache
from deepspec.catalog import find
from deepspec.placement import Placement
from deepspec.store import Store
from tests.e2e.conftest import Deepspec, kill_when, none_left
from tests.given.heard import Heard
from tests.given.s3 import s3, s3_server  # noqa: F401 - fixtures

FEW = ("--set", "prepare.max_samples=24", "--set", "train.steps=6", "--set", "dataset.benchmarks=[arithmetic]")


def part_marks(store: Store) -> list[str]:
    return [key for key in store.list("target_cache") if "/parts/" in key]


def copy_of(store: Store, folder: Path, *kinds: str) -> Store:
    for kind in kinds:
        for key in store.list(kind):
            store.get_file(key, folder / key)
    return Store(folder)


@pytest.mark.soak
def test_killed_while_capturing_and_resumed(api: str, data: Path, s3: Store, tmp_path: Path) -> None:  # noqa: F811
    deepspec = Deepspec(data=data, root=s3.root, api=api, extra=FEW)
    with deepspec.start("run") as process:
        try:
            kill_when(process, lambda: bool(part_marks(s3)), seconds=500)
        finally:
            process.kill()
    assert none_left(deepspec) == []
    assert not [key for key in s3.list("target_cache") if key.endswith("manifest.json")]
    kept = {key for key in s3.list("target_cache") if key.endswith(".safetensors")}
    print(f"\nkilled -9 with {len(part_marks(s3))} parts of {s3.root}/target_cache committed")
    resumed = deepspec.run("run", timeout=1800)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    print(resumed.stdout)
    cache = deepspec.manifest("target_cache")
    files = {f"target_cache/{cache.address}/{entry.key}" for entry in cache.files.values()}
    marked = [key for key in part_marks(s3) if f"/{cache.address}/" in key]
    assert len(marked) > 1
    assert files & kept
    print(f"{len(marked)} parts in the cache, {len(files & kept)} of them from before the kill")

    artifact = open_artifact(s3, find(s3, f"target_cache/{cache.address}"), tmp_path)
    found = verify_cache(artifact, Placement(scratch=tmp_path), Heard(), recompute=0)
    assert (found.sound, found.samples) == (True, cache.counts["samples"])

    shutil.rmtree(data / "scratch" / "fetched", ignore_errors=True)
    local = copy_of(s3, tmp_path / "local", "prompts", "answers")
    undisturbed = Deepspec(data=data, root=Path(local.root), api=api, extra=FEW)
    done = undisturbed.run("cache")
    assert done.returncode == 0, done.stderr
    assert undisturbed.manifest("target_cache").content == cache.content
    print(f"content {cache.content}, that of an undisturbed run in a local folder")
