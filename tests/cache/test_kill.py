"""kill -9 at any moment: the same command finishes the work, and the bytes are those of an undisturbed run."""

import os
import random
import signal
from pathlib import Path

import pytest

from deepspec.artifacts import read_manifest
from deepspec.store import Store
from tests.cache.child import main
from tests.given.killed import run_and_kill
from tests.given.published.caches import build, publish_answers, rows, spec_for


def marks(store: Store) -> dict[str, bytes]:
    keys = [key for key in store.list("target_cache") if "/parts/" in key]
    return {key: store.read_bytes(key) for key in keys}


def check(target: Path, tmp_path: Path, kills: int, seed: int, store: Store | None = None) -> None:
    store = store or Store(tmp_path / "root")
    scratch, rng = tmp_path / "scratch", random.Random(seed)
    answers = publish_answers(store, scratch, [rows(30), rows(30, seed=1)])
    spec = spec_for(target, part_bytes=60_000)
    whole = build(spec, target, answers, Store(tmp_path / "undisturbed"), tmp_path / "other")
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    args = (store.root, scratch, target, answers.ref, aws)
    committed: dict[str, bytes] = {}
    for _ in range(kills):
        assert run_and_kill(main, rng.randint(1, 20), *args) in (-signal.SIGKILL, 0)
        assert committed.items() <= marks(store).items()  # what was committed stays as it was
        committed = marks(store)
    assert run_and_kill(main, 10**6, *args) == 0
    manifest = read_manifest(store, "target_cache", "c")
    assert manifest is not None
    assert manifest.content == whole.content


def test_killed_twice(target: Path, tmp_path: Path) -> None:
    check(target, tmp_path, kills=2, seed=0)


@pytest.mark.soak
def test_killed_on_object_storage(target: Path, tmp_path: Path, s3: Store) -> None:
    check(target, tmp_path, kills=3, seed=9, store=s3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_killed_twenty_times(target: Path, tmp_path: Path, seed: int) -> None:
    check(target, tmp_path, kills=4, seed=seed + 1)
