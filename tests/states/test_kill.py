"""kill -9 of the run that asks, at any moment: the same command finishes the work, and what engines wrote is swept."""

import random
import signal

import pytest

from deepspec.artifacts import read_manifest
from deepspec.store import Store
from tests.killed import run_and_kill
from tests.states.child import main
from tests.states.conftest import Bench
from tests.states.served import serving


def check(bench: Bench, kills: int, seed: int) -> None:
    rng, spec = random.Random(seed), bench.spec(part_bytes=20_000)
    with serving(bench.served()) as engine:
        whole = read_manifest(bench.store, "target_cache", bench.run(engine, spec=spec).address)
        store = Store(bench.folder / "killed")
        ref = bench.again(store)
        args = (store.root, bench.folder / "scratch", bench.target, ref, (spec, engine.endpoint))
        for _ in range(kills):
            assert run_and_kill(main, rng.randint(1, 25), *args) in (-signal.SIGKILL, 0)
        assert run_and_kill(main, 10**6, *args) == 0
    manifest = read_manifest(store, "target_cache", "c")
    assert whole is not None
    assert manifest is not None
    assert manifest.content == whole.content
    assert bench.left() == []


def test_killed_once(bench: Bench):
    check(bench, kills=1, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_killed_five_times(bench: Bench, seed: int):
    print("seed", seed)
    check(bench, kills=5, seed=seed)
