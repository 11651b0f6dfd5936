"""A real run on states of engines, with kills, held against what the simulation says of it.

`python -m pytest -m bench tests/benchmarks/bench_simulate.py -s`: two throttled stand-ins for engines over loopback,
and a trainer whose steps take six seconds; all of them are killed and started again. The simulation gets what
was measured of each by itself (tokens a second of an engine while it reads, seconds of a step and of a start), the
lengths of the samples in their order, and when what was killed. It has to say how long the run takes and how long it
waits for states.
"""

import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from deepspec.artifacts import Artifact, open_artifact
from deepspec.cache.run import run as capture
from deepspec.simulate.data import ModelledSamples
from deepspec.simulate.failures import Failure
from deepspec.simulate.scenario import Scenario
from deepspec.simulate.simulation import simulate
from deepspec.target_cache.cache import TargetCache, stored_parts
from deepspec.target_cache.fetch import BoundedFolder
from tests.benchmarks.simulated_run import Notice, main
from tests.given.engines.bench import Bench
from tests.given.engines.states import serving
from tests.given.engines.training import SPEC
from tests.given.published.caches import out_for, placement_for, publish_answers, rows, spec_for
from tests.given.targets.tiny import write_target

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.benchmarks.simulated_run"])

STEPS, BATCH, STEP_SECONDS = 42, 8, 6.0
RATE = 40.0
"""Tokens a second of an engine: two give less than a step takes, one half of it, so that the trainer waits for more
than the few seconds that chance gives. Both are slow enough that what they compute is the smaller part of it."""
DTYPE, TOKEN_BYTES = "bfloat16", 4 * 32 * 2
AHEAD = 1500 * TOKEN_BYTES
ENGINE_DOWN = 30.0
PROBED = 2 * 3
"""Requests by which a process proves two engines."""
SPECS = SPEC.but(
    steps=STEPS, global_batch=BATCH, checkpoint_every=7, validation_samples=0, untrained_look=False, start="random",
    bigram_samples=0,
)  # fmt: skip
ENGINE_KILLS = [Failure(24.0, 0), Failure(110.0, 1)]
TRAINER_KILLS = [10, 24]
"""Steps after which the trainer is killed, half a step later: in the middle between two saved states. Near one it would
cost the run seven steps and the simulation none, or the other way round, where one is a step ahead of the other."""


@dataclass
class Process:
    """One process of the trainer, as it was seen."""

    started: float
    steps: list[tuple[float, int, float]] = field(default_factory=list)
    """When a step ended, which one, and the seconds in which the loop had waited for states until then."""
    last: Notice | None = None

    def hear(self, told: Notice) -> None:
        self.last = told
        if told.kind == "step":
            self.steps.append((told.at, told.step, told.waited))

    def waited(self, now: float) -> float:
        """Return how long it has waited for states, in its first step, too, and in the wait in which it is now."""
        if self.last is None:
            return 0.0
        return self.last.waited + (now - self.last.at if self.last.kind == "waits" else 0.0)

    def start(self, asked: Sequence[float], step: float) -> tuple[float, float]:
        """Return the seconds until engines were asked for samples, their proof left out, and what the first step took
        beyond the wait for states and an ordinary step.

        Args:
            asked: when engines were asked, by this process or others.
            step: seconds of an ordinary step.
        """
        own = [at for at in sorted(asked) if at >= self.started]
        begin, proven = own[0], own[PROBED]
        ended, _, waited = self.steps[0]
        return begin - self.started, max(0.0, ended - proven - waited - step)

    @property
    def computed(self) -> float:
        """Seconds of its steps, but the first, without waits."""
        return self.steps[-1][0] - self.steps[0][0] - (self.steps[-1][2] - self.steps[0][2])


class Site:
    """A cache of tokens, two engines, and a trainer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.bench = Bench(write_target(folder / "target"), folder)
        bench = self.bench
        told = [{**row, "split": "train"} for row in rows(STEPS * BATCH)]
        answers = publish_answers(bench.store, folder, [told], address="b")
        out = out_for(bench.store, folder, answers, "tokens")
        spec = spec_for(bench.target, codec="none", dtype=DTYPE)
        counts = capture(spec, {"answers": answers}, out, placement_for(bench.target, folder), bench.heard)
        self.cache: Artifact = open_artifact(bench.store, out.publish(spec, 1, counts), folder)
        parts = stored_parts(self.cache, BoundedFolder(folder / "parts", 1 << 30))
        index = TargetCache(self.cache, folder, parts=parts).index
        self.lengths = {index.sample_id(number): length for number, length in enumerate(index.lengths.tolist())}
        self.engines = [bench.served(rate=RATE, dtype=DTYPE), bench.served(rate=RATE, dtype=DTYPE)]
        self.processes: list[Process] = []
        self.ended, self.begin = Event(), math.inf
        """When the first step began."""
        self.read: dict[int, list[int]] = {}
        """Step -> lengths of the samples that it read."""
        self.waited = 0.0
        """Seconds in which the trainer waited for states; what the very first step waited for came before the begin."""
        self.kills = list(ENGINE_KILLS)
        """Those of the trainer as they came."""

    def serve(self, number: int) -> None:
        """Serve one engine, away for a while at each of its kills."""
        for kill in [kill.at for kill in ENGINE_KILLS if kill.engine == number] + [math.inf]:
            with serving(self.engines[number]):
                while not self.ended.wait(0.01) and time.monotonic() < self.begin + kill:
                    pass
            if self.ended.wait(0.0 if kill == math.inf else ENGINE_DOWN):
                return

    def train(self) -> None:
        """Train in as many processes as the kills of the trainer make of it."""
        threads = [Thread(target=self.serve, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        while not all(engine.port for engine in self.engines):
            time.sleep(0.01)
        try:
            for step in [*TRAINER_KILLS, None]:
                self.one_process(step)
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()
        self.waited -= self.processes[0].steps[0][2]

    def one_process(self, last: int | None) -> None:
        """Train until half a step after the last step that it may make; None: to the end."""
        here, there = CONTEXT.Pipe(duplex=False)
        engines = tuple(engine.endpoint for engine in self.engines)
        args = (there, self.bench.store.root, self.bench.target, self.cache.ref, SPECS, engines, AHEAD, STEP_SECONDS)
        child, process = CONTEXT.Process(target=main, args=args), Process(time.monotonic())
        self.processes.append(process)
        child.start()
        there.close()
        until = math.inf
        with contextlib.suppress(EOFError):
            while time.monotonic() < until:
                if here.poll(0.01):
                    told = here.recv()
                    process.hear(told)
                    if told.kind == "step":
                        self.begin = min(self.begin, told.at - STEP_SECONDS)
                        self.read[told.step] = [self.lengths[name] for name in told.sample_ids]
                        until = told.at + STEP_SECONDS / 2 if told.step == last else until
            child.kill()
            if last is not None:
                self.kills.append(Failure(time.monotonic() - self.begin, None))
        self.waited += process.waited(time.monotonic())
        child.join()

    @property
    def seconds(self) -> float:
        return self.processes[-1].steps[-1][0] - self.begin

    def rates(self) -> dict[str, Any]:
        """Return what the run gives a simulation."""
        read = [each for engine in self.engines for each in engine.read]
        lengths = list(self.lengths.values())
        seen = [process for process in self.processes if process.steps]
        step = sum(process.computed for process in seen) / sum(len(process.steps) - 1 for process in seen)
        asked = [at for engine in self.engines for at in engine.asked_at]
        starts = [each.start(asked, step) for each in seen[1:]]
        print("starts, and what first steps take beyond others:", [tuple(round(s, 1) for s in each) for each in starts])
        engine_rate = sum(length for length, _ in read) / sum(took for _, took in read)
        return {
            "engines": 2,
            "engine_rate": engine_rate,
            "engine_start": ENGINE_DOWN,
            "trainer_rate": 1e9,
            "step_seconds": step,
            "trainer_start": statistics.fmean(start for start, _ in starts),
            "first_step": statistics.fmean(first for _, first in starts),
            "checkpoint_every": SPECS.checkpoint_every,
            "samples": STEPS * BATCH,
            "tokens": statistics.fmean(lengths),
            "length_spread": statistics.stdev(map(math.log, lengths)),
            "global_batch": BATCH,
            "micro_batch": 2,
            "readers": 1,
            "state_bytes": TOKEN_BYTES,
            "ahead_bytes": AHEAD,
        }


def as_read(in_order: Sequence[int], scenario: Scenario) -> list[int]:
    """Return lengths by number, so that the simulated stream reads them in this order."""
    found = [0] * scenario.samples
    for length, number in zip(
        in_order, ModelledSamples(found, 1, scenario.seed, lambda _: None).order(0), strict=False
    ):
        found[number] = length
    return found


@pytest.mark.bench
@pytest.mark.timeout(1800)
def test_a_simulation_says_what_a_run_with_kills_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path / "site")
    site.train()
    told = Scenario.model_validate(site.rates())
    in_order = [length for step in sorted(site.read) for length in site.read[step]]
    monkeypatch.setattr("deepspec.simulate.simulation.lengths_of", partial(as_read, in_order))
    first = simulate(told.but(samples=BATCH), [])
    begin = (
        first.seconds - STEP_SECONDS
    )  # as the run is looked at from the end of its first step on, less what it takes
    kills = sorted(site.kills, key=lambda kill: kill.at)
    found = simulate(told, [Failure(begin + kill.at, kill.engine) for kill in kills])
    seconds = found.seconds - begin
    taken = sum(len(process.steps) for process in site.processes)
    waited = found.trainers_waited * found.seconds - first.trainers_waited * first.seconds
    print("starts:", [round(each.steps[0][0] - each.started, 1) for each in site.processes if each.steps])
    print("\nrates:", {name: round(value, 3) for name, value in told.model_dump(exclude_none=True).items()})
    print("kills:", kills)
    print(
        f"run: {site.seconds:.1f} s, {STEPS * BATCH / site.seconds:.3f} samples/s, waited {site.waited:.1f} s, "
        f"{taken - STEPS} steps again"
    )
    print(
        f"simulated: {seconds:.1f} s, {STEPS * BATCH / seconds:.3f} samples/s, waited {waited:.1f} s, "
        f"{found.steps_again} steps again, {found.rows_lost} rows lost"
    )
    steps: dict[int, int] = {}
    for process in site.processes:
        steps |= {step: 1 for _, step, _ in process.steps}
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert found.rows_lost == 0
    assert seconds == pytest.approx(site.seconds, rel=0.1)
    assert waited == pytest.approx(site.waited, rel=0.1)
