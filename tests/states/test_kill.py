"""kill -9 of the run that asks, at any moment: the same command finishes the work, and what engines wrote is swept."""

import os
import random
import signal
from contextlib import ExitStack

import pytest

from deepspec.artifacts import read_manifest
from deepspec.store import Store
from tests.given.engines.bench import Bench
from tests.given.engines.carried import carrying
from tests.given.engines.one_pass import Line
from tests.given.engines.states import serving
from tests.given.killed import run_and_kill
from tests.states.child import both, main


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


def test_killed_once(bench: Bench) -> None:
    check(bench, kills=1, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_killed_five_times(bench: Bench, seed: int) -> None:
    print("seed", seed)
    check(bench, kills=5, seed=seed)


def check_pass(bench: Bench, kills: int, seed: int, through: Store | None = None) -> None:
    """Kill one pass, in its answers, between them and the cache, or in the cache; it ends as one that nobody killed.

    With a store the one that is killed asks a carrier.
    """
    rng, whole = random.Random(seed), Line(bench.target, bench.folder / "whole")
    killed = Line(bench.target, bench.folder / "killed")
    spec = whole.cache_spec(part_bytes=20_000)
    with serving(bench.served(delay=0.005)) as engine, ExitStack() as stack:
        asked = engine.endpoint if through is None else stack.enter_context(carrying(engine, through))
        wanted = read_manifest(
            whole.store, "target_cache", whole.cache(spec, whole.answers(spec, engine.endpoint)).address
        )
        proven = len(engine.asked)
        env = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name == "no_proxy"}
        args = (bench.target, bench.folder / "killed", asked, env)
        for _ in range(kills):
            assert run_and_kill(both, rng.randint(1, 60), *args) in (-signal.SIGKILL, 0)
        assert run_and_kill(both, 10**6, *args) == 0
        assert len(engine.asked) <= proven * (kills + 2)  # read once more was nothing but the prompts of proofs
    assert wanted is not None
    manifest = read_manifest(killed.store, "target_cache", wanted.address)
    assert manifest is not None
    assert manifest.content == wanted.content
    assert killed.kept() == []
    assert bench.left() == []


def test_one_pass_killed_once(bench: Bench) -> None:
    check_pass(bench, kills=1, seed=3)


@pytest.mark.slow
def test_one_pass_through_a_store_killed_once(bench: Bench, s3: Store) -> None:
    check_pass(bench, kills=1, seed=3, through=s3)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_one_pass_through_a_store_killed_five_times(bench: Bench, s3: Store, seed: int) -> None:
    print("seed", seed)
    check_pass(bench, kills=5, seed=seed, through=s3)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_one_pass_killed_five_times(bench: Bench, seed: int) -> None:
    print("seed", seed)
    check_pass(bench, kills=5, seed=seed)
