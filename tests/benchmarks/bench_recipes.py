"""Three algorithms, three seeds, at most four minutes each of one thread: accepted length, the table in docs/log.md.

    DEEPSPEC_CACHE=STORE/target_cache/ADDRESS DEEPSPEC_TARGET=FOLDER \
        python -m pytest -m bench tests/benchmarks/bench_recipes.py -s --timeout 7200

FOLDER is the target that made the cache, as a Hugging Face folder. Lengths are teacher-forced, greedy on both sides,
bonus included, over the cache's validation split; seconds are of the processor, without start and looks.
"""

import math
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from deepspec.artifacts import Artifact, read_manifest
from deepspec.placement import Placement
from deepspec.steps.ranks import Ranks
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.train.ready import make_loop
from deepspec.train.spec import TrainSpec
from tests.given.drafts.recipes import aimed, sized
from tests.given.some import some

pytestmark = pytest.mark.bench

SEEDS = (0, 1, 2)
GOAL = 1.35
"""Accepted length after four minutes."""
T_95 = 4.303
"""Student's, two degrees of freedom: for a mean of three seeds."""
SPEC = TrainSpec(
    draft={"draft_vocab_size": 8192, "markov_rank": 128, "block_size": 4, "num_layers": 2},
    objective={"num_anchors": 64, "cross_entropy": 1.0, "total_variation": 0.0},
    start="fitted",
    precision="bf16",
    global_batch=1,
    learning_rate=1e-3,
    validation_samples=16,
    mask_token_id=16,
)
STEPS = {"dspark": 480, "dflash": 480, "eagle3": 360}
"""Four minutes at most; DSpark and DFlash take as many, so that they can be compared."""
LOOKS = 8
Curve = list[tuple[float, float]]
"""Seconds of training, and the held-out accepted length then."""


def test_three_algorithms_three_seeds(tmp_path: Path) -> None:
    found = {name: [curve(tmp_path, name, seed) for seed in SEEDS] for name in STEPS}
    for name, curves in found.items():
        tell(f"{name} accepted length", [each[-1][1] for each in curves])
        tell(f"{name} before the first step", [each[0][1] for each in curves])
        tell(f"{name} seconds", [each[-1][0] for each in curves])
    pairs = list(zip(found["dspark"], found["dflash"], strict=True))
    tell("dspark less dflash, equal steps", [one[-1][1] - two[-1][1] for one, two in pairs])
    shorter = [min(one[-1][0], two[-1][0]) for one, two in pairs]
    apart = [after(one, most) - after(two, most) for (one, two), most in zip(pairs, shorter, strict=True)]
    tell("dspark less dflash, equal time", apart)
    assert all(statistics.mean(each[-1][1] for each in curves) >= GOAL for curves in found.values())


def curve(scratch: Path, algorithm: str, seed: int) -> Curve:
    """Train one draft and return its looks at the held-out samples."""
    root, kind, address = os.environ["DEEPSPEC_CACHE"].rstrip("/").rsplit("/", 2)
    store, target = Store(root), os.environ["DEEPSPEC_TARGET"]
    cache = TargetCache(Artifact(store, some(read_manifest(store, kind, address)), scratch), scratch)
    draft = sized(algorithm, **SPEC.draft.model_dump(exclude={"algorithm"}))
    placement = Placement(threads=1, micro_batch=1, locations={cache.facts.target.digest: target}, scratch=scratch)
    total = STEPS[algorithm]
    objective = aimed(algorithm, **{**SPEC.objective.model_dump(), "ttt_length": 4})
    spec = SPEC.but(draft=draft, objective=objective, seed=seed, steps=total, validate_every=total // LOOKS)
    loop = make_loop(spec, cache, Ranks("cpu"), placement, print)
    sieve = Sieve(SPEC.skip_limit, 0, loop.task.device)
    seconds, found = 0.0, []
    with StopSignal() as stop, closing(loop.reader.steps(0, loop.total)) as steps:
        while True:
            loop._look_if_due(None, stop)
            if loop.progress.looks()[-1]["step"] == loop.progress.step:
                found.append((seconds, loop.progress.looks()[-1]["tau_greedy"]))
            if loop.finished:
                return found
            step, begin = next(steps), time.process_time()
            loop._step(step, sieve, stop)
            loop._fetch()
            seconds += time.process_time() - begin


def after(curve: Curve, seconds: float) -> float:
    """Return the length at the last look within so many seconds."""
    return [length for spent, length in curve if spent <= seconds][-1]


def tell(what: str, values: Sequence[float]) -> None:
    mean, half = statistics.mean(values), T_95 * statistics.stdev(values) / math.sqrt(len(values))
    print(f"{what}: {', '.join(f'{v:.3f}' for v in values)}; mean {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]")
