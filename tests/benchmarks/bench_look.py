"""What a look at held-out samples costs beside a training step: its loss, and the walk over its answers.

python -m pytest -m bench tests/benchmarks/bench_look.py -s
"""

import statistics
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from deepspec.steps.ranks import Ranks
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.facts import Sampled
from deepspec.train.accepted import AnswersKnown
from deepspec.train.ready import make_loop
from deepspec.train.spec import TrainSpec
from tests.given.drafts.recipes import sized
from tests.given.published.site import make_site
from tests.given.some import some
from tests.given.targets import tiny

pytestmark = pytest.mark.bench

WIDTH, LOOKS = 256, 7
GOAL = 2.0
"""A look at as many samples as a step has takes at most so many times the step: all anchors, but no backward pass."""


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
@pytest.mark.parametrize("sampled", [Sampled(temperature=0.0), Sampled(temperature=0.7, top_p=0.8, top_k=20)], ids=str)
def test_a_look_costs_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, sampled: Sampled
) -> None:
    monkeypatch.setattr(tiny, "HIDDEN", WIDTH)
    torch.set_num_threads(1)
    site = make_site(tmp_path)
    draft = sized(algorithm, num_layers=2, markov_rank=64)
    spec = TrainSpec(draft=draft, steps=1000, global_batch=5, precision="fp32")
    cache = TargetCache(site.cache, site.placement.scratch)
    loop = make_loop(spec, cache, Ranks("cpu"), site.placement, print)
    loop.answered = AnswersKnown(sampled=sampled, stop_ids=frozenset({tiny.IM_END}))
    sieve = Sieve(spec.skip_limit, 0, loop.task.device)
    seconds = []
    with StopSignal() as stop, closing(loop.reader.steps(0, loop.total)) as steps:
        for _ in range(LOOKS):
            begin = time.process_time()
            loop._step(next(steps), sieve, stop)
            loop._fetch()
            seconds.append(time.process_time() - begin)
        begin = time.process_time()
        for _ in range(LOOKS):
            some(loop.validation).look(stop)
        look = (time.process_time() - begin) / LOOKS
    step, walk = statistics.median(seconds), some(loop.validation).walking / LOOKS
    print(
        f"{algorithm}, temperature {sampled.temperature}: a step of 5 samples {1e3 * step:.0f} ms of the processor, a "
        f"look at 5 {1e3 * look:.0f} ms, of it the walk {1e3 * walk:.0f} ms: {look / step:.1f} steps"
    )
    assert look < GOAL * step
