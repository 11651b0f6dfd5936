"""kill -9 of the trainer, and the end of the engine, at any moment: the same samples in the same order, one draft."""

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest

from deepspec.artifacts import Artifact, read_manifest
from deepspec.placement import Endpoint
from deepspec.states import staging
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache, stored_parts
from deepspec.target_cache.fetch import BoundedFolder
from deepspec.train.spec import TrainSpec
from tests.given.engines.bench import Bench
from tests.given.engines.states import serving
from tests.given.engines.states_child import main as serve
from tests.given.engines.training import SPEC, tokens_of
from tests.given.published.caches import publish_answers, rows
from tests.states.child_training import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.states.child_training", "tests.given.engines.states_child"]
)  # libraries are imported once, not once a child
AHEAD = 400
"""Tokens that may be asked for and not kept yet."""
TOLD = SPEC.but(steps=9, keep_states="1GB")


class Runs:
    """One training run in as many processes as kills make of it."""

    def __init__(self, bench: Bench, name: str, cache: Artifact, *engines: Endpoint, spec: TrainSpec = TOLD) -> None:
        self.store = Store(bench.folder / name / "store")
        shutil.copytree(bench.folder / "store", bench.folder / name / "store")
        bytes_ahead = AHEAD * 4 * 32 * 4
        self.args = (self.store.root, bench.target, cache.ref, spec, engines, bytes_ahead)
        self.steps: dict[int, list[str]] = {}
        """Step -> the samples that it read, the same in whichever process."""

    def run(self, kill_after: int | None = None, pause: float = 0.0) -> int | None:
        """Start the trainer, kill it a moment after so many steps, and return its exit code."""
        here, there = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=main, args=(there, *self.args))
        child.start()
        there.close()
        try:
            with contextlib.suppress(EOFError):
                while kill_after is None or kill_after > 0:
                    self.heard(*here.recv())
                    kill_after = None if kill_after is None else kill_after - 1
                time.sleep(pause)
                child.kill()
                while True:
                    self.heard(*here.recv())
        except BaseException:
            child.kill()  # else it is waited for at the end of the tests
            raise
        child.join()
        return child.exitcode

    def heard(self, step: int, ids: list[str]) -> None:
        assert self.steps.setdefault(step, ids) == ids

    @property
    def saved(self) -> list[int]:
        """Return the steps whose states are whole."""
        marks = (Path(self.store.root).parent / "scratch").rglob("checkpoints/last/step-*.json")
        return sorted(int(mark.stem.removeprefix("step-")) for mark in marks)

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
        whole = Runs(bench, "whole", cache, engine.endpoint)
        assert whole.run() == 0
        unbroken, probes = list(engine.asked), 3
        killed = Runs(bench, "killed", cache, engine.endpoint)
        codes = [killed.run(rng.randint(0, 6), rng.uniform(0, 0.1)) for _ in range(kills)]
        assert set(codes) <= {-signal.SIGKILL, 0}
        assert killed.run() == 0
    assert killed.published == whole.published
    assert killed.steps == whole.steps
    assert sorted(killed.steps) == list(range(9))
    lengths = sorted(map(len, unbroken[probes:]))
    assert len(lengths) == 19
    proofs = set(map(tuple, unbroken[:probes]))  # an engine is proven again, too, where a request of its failed
    asked = [ids for ids in map(tuple, engine.asked[len(unbroken) :]) if ids not in proofs]
    alone = sum(len(ids) for ids in unbroken[probes:] if tuple(ids) not in proofs)
    most = alone + kills * (AHEAD + lengths[-1])
    assert sum(map(len, asked)) <= most, Counter(map(len, asked))
    assert bench.left() == []


def check_engine(bench: Bench, kills: int, seed: int) -> None:
    """The engine goes away and comes back at any moment, while the trainer goes on."""
    rng, cache, ended = random.Random(seed), trained(bench), Event()
    with serving(bench.served()) as engine:
        whole = Runs(bench, "whole", cache, engine.endpoint)
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
    broken = Runs(bench, "broken", cache, engine.endpoint)
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


class Engines:
    """Two engines in processes of their own, of which kill -9 takes one after another; one of them is always up.

    A kill comes after so many requests, not seconds: on a slow machine, too, an engine can be proven in between.
    """

    def __init__(self, bench: Bench, rng: random.Random, between: tuple[int, int] = (8, 40)) -> None:
        self.faults = {"folder": bench.staging, "target": bench.target, "delay": 0.02}
        self.rng, self.between, self.kills = rng, between, 0
        self.ended, self.spared, self.over = Event(), Event(), Event()
        """No kill is wanted any more; none will come; nobody is left to be heard."""
        self.asked: list[tuple[int, ...]] = []
        """What they were asked for, as far as it was heard."""
        self.turn = Lock()
        self.ports = {0: 0, 1: 0}
        self.children: dict[int, BaseProcess] = {}
        self.pipes: dict[int, Connection] = {}
        for number in (0, 1):
            self.start(number)
        self.going = Thread(target=self.come_and_go)

    @property
    def endpoints(self) -> list[Endpoint]:
        return [Endpoint(url=f"http://127.0.0.1:{port}/v1", model="tiny") for port in self.ports.values()]

    def start(self, number: int) -> None:
        here, there = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=serve, args=(there, self.ports[number], self.faults))
        child.start()
        there.close()
        self.ports[number], self.children[number], self.pipes[number] = here.recv(), child, here

    def kill(self, number: int) -> None:
        self.children[number].kill()
        self.children[number].join()
        self.hear()
        with self.turn:
            self.pipes[number].close()

    def hear(self) -> None:
        """Hear all that the engines have told so far; each tells of a request before it answers."""
        with self.turn:
            for pipe in self.pipes.values():
                with contextlib.suppress(EOFError, OSError):  # its engine was killed
                    while pipe.poll():
                        self.asked.append(tuple(pipe.recv()))

    def come_and_go(self) -> None:
        try:
            while self.served(self.rng.randint(*self.between)):
                time.sleep(self.rng.uniform(0.0, 0.05))
                number = self.rng.randrange(2)
                self.kill(number)
                self.kills += 1
                self.start(number)
        finally:
            self.spared.set()
        while not self.over.is_set():  # an engine whom nobody hears waits, once its pipe is full
            wait(list(self.pipes.values()), timeout=0.05)
            self.hear()

    def served(self, requests: int) -> bool:
        """Wait until both have been asked so many times more; return whether another kill is wanted then."""
        wanted = len(self.asked) + requests
        while len(self.asked) < wanted and not self.ended.is_set():
            wait(list(self.pipes.values()), timeout=0.05)
            self.hear()
        return not self.ended.is_set()

    def rest(self) -> None:
        """Kill none any more; both are up."""
        self.ended.set()
        self.spared.wait()

    def __enter__(self) -> "Engines":
        self.going.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self.over.set()
        self.going.join()
        for number in (0, 1):
            self.kill(number)


def check_both(
    bench: Bench,
    cache: Artifact,
    kills: int,
    seed: int,
    spec: TrainSpec,
    longest: int,
    between: tuple[int, int] = (8, 40),
) -> set[tuple[int, ...]]:
    """Trainer and engines are killed with -9, each so many times, at random moments.

    Args:
        longest: steps of a process that is killed.
        between: requests between two kills of engines.

    Returns:
        What was asked for again, though a process before had trained on it; the prompts of proofs left out.
    """
    rng, codes, again = random.Random(seed), list[int | None](), set[tuple[int, ...]]()
    ids = ids_of(bench, cache)
    with serving(bench.served()) as engine:
        whole = Runs(bench, "whole", cache, engine.endpoint, spec=spec)
        assert whole.run() == 0
    probes = set(map(tuple, engine.asked[:3]))
    with Engines(bench, random.Random(seed + 1), between) as engines:
        killed = Runs(bench, "killed", cache, *engines.endpoints, spec=spec)

        def goes_on(*until: Any) -> int | None:
            engines.hear()
            trained_on = {ids[name] for names in killed.steps.values() for name in names}
            begin, code = len(engines.asked), killed.run(*until)
            engines.hear()
            again.update(trained_on.intersection(engines.asked[begin:]) - probes)
            return code

        while codes.count(-signal.SIGKILL) < kills or engines.kills < kills:
            codes.append(goes_on(rng.randint(0, longest), rng.uniform(0, 0.2)))
            assert codes[-1] != 0, f"it ended before there were {kills} kills of each: {codes}, {engines.kills}"
        print(
            f"seed {seed}: {len(codes)} kills of the trainer until step {max(killed.steps)}, {engines.kills} of engines"
        )
        engines.rest()
        assert goes_on() == 0
    assert set(codes) == {-signal.SIGKILL}
    assert killed.steps == whole.steps
    assert sorted(killed.steps) == list(range(spec.steps or 0))
    assert killed.published == whole.published
    staging.sweep(bench.staging)
    assert bench.left() == []
    return again


def ids_of(bench: Bench, cache: Artifact) -> dict[str, tuple[int, ...]]:
    parts = stored_parts(cache, BoundedFolder(bench.folder / "parts", 1 << 30))
    found = TargetCache(cache, bench.folder, parts=parts)
    ids = {found.index.sample_id(n): tuple(found.tokens(n)[0].tolist()) for n in range(len(found.index.lengths))}
    assert len(set(ids.values())) == len(ids)
    return ids


def test_a_trainer_that_is_killed_goes_on_and_asks_for_what_was_in_flight_alone(bench: Bench) -> None:
    check_trainer(bench, kills=2, seed=0)


def test_a_trainer_that_is_killed_asks_for_the_start_of_its_draft_no_more(bench: Bench) -> None:
    """Four samples a step from the saved one on, three held-out ones at each look, three that prove the engine."""
    cache, spec = trained(bench), TOLD.but(keep_states=0)
    with serving(bench.served()) as engine:
        killed = Runs(bench, "killed", cache, engine.endpoint, spec=spec)
        assert killed.run(kill_after=5) == -signal.SIGKILL
        saved, before = killed.saved[-1], len(engine.asked)
        assert killed.run() == 0
    looks = [step for step in (0, 4, 8, 9) if step >= saved]
    assert len(engine.asked) - before == 4 * (9 - saved) + 3 * len(looks) + 3
    assert before >= 16 + 4 * 5 + 3 + 3


def test_an_engine_that_comes_and_goes_changes_nothing(bench: Bench) -> None:
    check_engine(bench, kills=2, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_a_trainer_that_is_killed_five_times(bench: Bench, seed: int) -> None:
    print("seed", seed)
    check_trainer(bench, kills=5, seed=seed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_comes_and_goes_five_times(bench: Bench, seed: int) -> None:
    print("seed", seed)
    check_engine(bench, kills=5, seed=seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_of_the_trainer_and_twenty_of_engines(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.states.staging.YOUNG_SECONDS", 0.0)
    spec = TOLD.but(steps=160, keep_states="0GB")  # so that engines are needed to the end
    assert check_both(bench, trained(bench), kills=20, seed=0, spec=spec, longest=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills_of_each_in_two_epochs_of_states_that_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.states.staging.YOUNG_SECONDS", 0.0)
    told = [{**row, "split": "train" if n % 41 else "validation"} for n, row in enumerate(rows(410))]
    bench.answers = publish_answers(bench.store, bench.folder, [told[:200], told[200:]], address="b")
    # of 400 samples, four a step: two epochs; the start of a draft would ask for all of them at once
    spec = TOLD.but(steps=200, validate_every=50, bigram_samples=0)
    again = check_both(bench, tokens_of(bench), kills=20, seed=0, spec=spec, longest=16, between=(6, 24))
    assert again == set()
