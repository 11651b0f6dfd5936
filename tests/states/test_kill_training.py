"""kill -9 of the trainer, and the end of the engine, at any moment: the same samples in the same order, one draft."""

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from threading import Event, Thread
from typing import Any

import pytest

from deepspec.artifacts import Artifact, read_manifest
from deepspec.store import Store
from tests.given.engines.bench import Bench
from tests.given.engines.states import Served, serving
from tests.given.engines.training import SPEC, tokens_of
from tests.given.published.caches import publish_answers, rows
from tests.states.child_training import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.states.child_training"])  # libraries are imported once, not once a child
AHEAD = 400
"""Tokens that may be asked for and not kept yet."""
TOLD = SPEC.but(steps=9, keep_states="1GB")


class Runs:
    """One training run in as many processes as kills make of it."""

    def __init__(self, bench: Bench, name: str, cache: Artifact, engine: Served) -> None:
        self.store = Store(bench.folder / name / "store")
        shutil.copytree(bench.folder / "store", bench.folder / name / "store")
        bytes_ahead = AHEAD * 4 * 32 * 4
        self.args = (self.store.root, bench.target, cache.ref, TOLD, engine.endpoint, bytes_ahead)
        self.steps: dict[int, list[str]] = {}
        """Step -> the samples that it read, the same in whichever process."""

    def run(self, kill_after: int | None = None, pause: float = 0.0) -> int | None:
        """Start the trainer, kill it a moment after so many steps, and return its exit code."""
        here, there = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=main, args=(there, *self.args))
        child.start()
        there.close()
        with contextlib.suppress(EOFError):
            while kill_after is None or kill_after > 0:
                step, ids = here.recv()
                assert self.steps.setdefault(step, ids) == ids
                kill_after = None if kill_after is None else kill_after - 1
            time.sleep(pause)
            child.kill()
            while True:
                step, ids = here.recv()
                assert self.steps.setdefault(step, ids) == ids
        child.join()
        return child.exitcode

    @property
    def published(self) -> Any:
        manifest = read_manifest(self.store, "draft", "draft")
        return None if manifest is None else manifest.content


def trained(bench: Bench) -> Artifact:
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    return tokens_of(bench)


def check_trainer(bench: Bench, kills: int, seed: int) -> None:
    rng, cache = random.Random(seed), trained(bench)
    with serving(bench.served()) as engine:
        whole = Runs(bench, "whole", cache, engine)
        assert whole.run() == 0
        unbroken, probes = list(engine.asked), 3
        killed = Runs(bench, "killed", cache, engine)
        codes = [killed.run(rng.randint(0, 6), rng.uniform(0, 0.1)) for _ in range(kills)]
        assert set(codes) <= {-signal.SIGKILL, 0}
        assert killed.run() == 0
    assert killed.published == whole.published
    assert killed.steps == whole.steps
    assert sorted(killed.steps) == list(range(9))
    lengths = sorted(map(len, unbroken[probes:]))
    asked = engine.asked[len(unbroken) :]
    probing = sum(map(len, unbroken[:probes])) * (kills + 1)
    assert len(lengths) == 19
    assert sum(map(len, asked)) - probing <= sum(lengths) + kills * (AHEAD + lengths[-1])
    assert bench.left() == []


def check_engine(bench: Bench, kills: int, seed: int) -> None:
    """The engine goes away and comes back at any moment, while the trainer goes on."""
    rng, cache, ended = random.Random(seed), trained(bench), Event()
    with serving(bench.served()) as engine:
        whole = Runs(bench, "whole", cache, engine)
        assert whole.run() == 0
        unbroken = len(engine.asked)
    engine.delay = 0.05
    ends: list[int] = []

    def come_and_go() -> None:
        while not ended.is_set():
            up = rng.randint(2, 6)
            with serving(engine):
                begin = len(engine.asked)
                while len(engine.asked) < begin + up + 3 * bool(ends) and not ended.wait(0.005):
                    pass
                if len(ends) >= kills:
                    ended.wait()
            ends.append(len(engine.asked))

    going = Thread(target=come_and_go)
    going.start()
    broken = Runs(bench, "broken", cache, engine)
    try:
        code = broken.run()
    finally:
        ended.set()
        going.join()
    assert code == 0
    assert len(ends) > min(kills, 1)
    assert broken.published == whole.published
    assert broken.steps == whole.steps
    assert len(engine.asked) >= 2 * unbroken


def test_a_trainer_that_is_killed_goes_on_and_asks_for_what_was_in_flight_alone(bench: Bench):
    check_trainer(bench, kills=2, seed=0)


def test_an_engine_that_comes_and_goes_changes_nothing(bench: Bench):
    check_engine(bench, kills=2, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_a_trainer_that_is_killed_five_times(bench: Bench, seed: int):
    print("seed", seed)
    check_trainer(bench, kills=5, seed=seed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_comes_and_goes_five_times(bench: Bench, seed: int):
    print("seed", seed)
    check_engine(bench, kills=5, seed=seed)
