"""The training loop against the bare work in it: forward, loss, backward and AdamW.

Pairs are measured in turns in one run, so that whatever else the machine does hits both alike.

    python -m pytest -m bench tests/benchmarks/bench_train.py -s
"""

import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from deepspec.artifacts import Artifact, open_artifact
from deepspec.steps.checkpoint import Checkpoints, Retention
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import MicroBatch, Step, Supervised
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.train.loop import Loop
from deepspec.train.ready import make_loop
from deepspec.train.spec import TrainSpec
from deepspec.train.task import total_denominators
from tests.given.published.launched import Launched
from tests.given.published.site import Site, make_site
from tests.given.s3 import s3, s3_server  # noqa: F401 - fixtures
from tests.given.targets import tiny

pytestmark = pytest.mark.bench

STEPS = 40
SPEC = TrainSpec(
    draft={"num_layers": 2, "markov_rank": 64},
    objective={"num_anchors": 16},
    steps=STEPS,
    global_batch=16,
    precision="fp32",
    validation_samples=0,
    checkpoint_every=1000,
)
"""A draft that is small for any use: the loop's own work is dear beside the model's."""
WIDTH = 128


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with a target wider than the one of the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny, "HIDDEN", WIDTH)
        return make_site(tmp_path_factory.mktemp("bench"))


def loop_for(site: Site, cache: Artifact | None = None, scratch: Path | None = None) -> Loop:
    opened = TargetCache(cache or site.cache, scratch or site.placement.scratch)
    return make_loop(SPEC, opened, Ranks("cpu"), site.placement.model_copy(update={"micro_batch": 8}), print)


class Bare:
    """What cannot be left out of a step, with batches in memory and torch's own AdamW."""

    def __init__(self, loop: Loop) -> None:
        model = copy.deepcopy(loop.task.model)  # without the hooks that the loop's optimizer put on it
        self.task = dataclasses.replace(loop.task, model=model)
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.adam = torch.optim.AdamW(self.trainable, lr=6e-4, fused=True)

    def step(self, batches: list[MicroBatch]) -> None:
        parts = [Supervised(tokens=micro.batch, supervision=micro.supervision) for micro in batches]
        denominators = total_denominators(parts)
        for micro in self.task.moved(batches):
            self.task.loss(micro, denominators).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.adam.step()
        self.adam.zero_grad()


def take(loop: Loop, steps: Iterator[Step], sieve: Sieve, stop: StopSignal) -> None:
    """Take a step as `Loop.run` does where numbers are fetched at each, its time counted."""
    loop._timed(lambda: loop._step(next(steps), sieve, stop))
    loop._timed(loop._fetch)


def seconds(turn: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    turn()
    return clock() - begin


def test_a_step_costs_what_its_parts_cost(site: Site) -> None:
    """In processor time of the loop's thread, which other load on the machine does not stretch."""
    loop, source = loop_for(site), loop_for(site)
    bare = Bare(loop)
    mine, theirs = [], []
    sieve = Sieve(10, 0, torch.device("cpu"))
    with StopSignal() as stop, closing(loop.reader.steps(0, STEPS)) as steps:
        for step in range(STEPS):
            with closing(source.reader.steps(step, step + 1)) as again:
                batches = list(next(again).micro_batches())
            mine.append(seconds(lambda: take(loop, steps, sieve, stop), time.thread_time))
            theirs.append(seconds(partial(bare.step, batches), time.thread_time))
    ratio = statistics.median(mine) / statistics.median(theirs)
    waited = loop.data_wait_share
    print(
        f"\nstep {statistics.median(mine) * 1e3:.1f} ms, bare {statistics.median(theirs) * 1e3:.1f} ms: × {ratio:.3f}"
    )
    print(f"data wait {waited:.1%} of the time")
    assert ratio < 1.05
    assert waited < 0.05


def test_records_from_s3_are_there_when_they_are_wanted(site: Site, s3: Store, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    """The cache lies on an S3 server on loopback, and nothing of it here when the loop begins."""
    prefix = site.cache.prefix
    for key in site.store.list(prefix):
        (tmp_path / "file").write_bytes(site.store.read_bytes(key))
        s3.put_file(tmp_path / "file", key)
    scratch = tmp_path / "elsewhere"
    ref = site.cache.ref.model_copy(update={"uri": s3.uri(prefix)})
    loop = loop_for(site, open_artifact(s3, ref, scratch), scratch)
    sieve = Sieve(10, 0, torch.device("cpu"))
    with StopSignal() as stop, closing(loop.reader.steps(0, STEPS)) as steps:
        for _ in range(STEPS):
            take(loop, steps, sieve, stop)
    print(f"\ndata wait from S3 {loop.data_wait_share:.1%} of the time")
    assert loop.data_wait_share < 0.10


def test_saving_holds_training_up_for_less_than_a_step(site: Site, tmp_path: Path) -> None:
    loop = loop_for(site)
    states = Checkpoints(Store(tmp_path), "run", tmp_path / "saving", Retention(last=2), print)
    stalls, steps_taken = [], []
    sieve = Sieve(10, 0, torch.device("cpu"))
    with StopSignal() as stop, closing(loop.reader.steps(0, STEPS)) as steps:
        for _ in range(STEPS // 4):
            stalls.append(seconds(lambda: states.save(loop.state())))
            steps_taken += [seconds(lambda: take(loop, steps, sieve, stop)) for _ in range(4)]
    states.close()
    stall, step = statistics.median(stalls), statistics.median(steps_taken)
    print(f"\nsaving holds up for {stall * 1e3:.2f} ms, a step takes {step * 1e3:.1f} ms")
    assert stall < step


def test_two_ranks_are_faster_than_one(site: Site) -> None:
    load = os.getloadavg()[0]
    spec = SPEC.but(steps=60)
    rates = []
    for ranks in (1, 2):
        artifact = site.open(Launched(site, f"bench-{ranks}", spec, ranks).published())
        rates.append(artifact.counts["tokens_per_second"])
    print(f"\n1 rank {rates[0]:.0f} tokens/s, 2 ranks {rates[1]:.0f} tokens/s: × {rates[1] / rates[0]:.2f}")
    if rates[1] <= 1.5 * rates[0] and load > 0.5:
        pytest.skip(f"two free cores are needed to judge that; the load was {load:.1f}")
    assert rates[1] > 1.5 * rates[0]
