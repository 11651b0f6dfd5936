"""Regeneration against simulated engines over real HTTP on loopback: saturation, client overhead, memory.

python -m pytest -m bench tests/benchmarks/bench_regenerate.py -s
"""

import asyncio
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deepspec.asking.engine import Engine
from deepspec.asking.question import Question
from deepspec.asking.sampling import Sampling
from deepspec.placement import Endpoint
from infra.engines.managed import free_port
from tests.given.engines.prompts import Bench, prompt, prompts
from tests.given.heard import Heard

SECONDS = 0.5
SLOTS = (16, 16, 16, 4)
"""Capacities 1, 1, 1 and 0.25: the last engine has a quarter of the slots."""
CAPACITY = sum(SLOTS) / SECONDS

pytestmark = pytest.mark.bench


@dataclass
class Timed(Heard):
    """Keeps when the first row was about to be asked, and when the last one was there."""

    times: list[float] = field(default_factory=list)

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        self.times.append(time.perf_counter())

    @property
    def took(self) -> float:
        return self.times[-1] - self.times[0]


@contextmanager
def engines(slots: tuple[int, ...], seconds: float) -> Iterator[list[str]]:
    """Serve simulated engines, each in a process of its own."""
    ports = [free_port() for _ in slots]
    module = [sys.executable, "-m", "tests.given.engines.answering"]
    started = [
        subprocess.Popen([*module, str(port), "--slots", str(number), "--seconds", str(seconds)])
        for port, number in zip(ports, slots, strict=True)
    ]
    try:
        for port in ports:
            wait_until_up(port)
        yield [f"http://127.0.0.1:{port}/v1" for port in ports]
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_until_up(port: int) -> None:
    for _ in range(200):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail("a simulated engine did not start")


def timed(bench: Bench) -> Timed:
    bench.heard = Timed()
    return bench.heard


def test_four_uneven_endpoints_are_saturated(tmp_path: Path) -> None:
    rows = 6000
    bench = Bench(tmp_path)
    bench.spec = bench.spec.but(rows_per_part=1000)
    heard = timed(bench)
    with engines(SLOTS, SECONDS) as urls:
        bench.answers(prompts(rows), *urls)
        shares = {row["endpoint"]: row["answers"] for row in heard.tables["endpoints"]}
        naive = asyncio.run(round_robin(urls, rows // 10))
    share = rows / heard.took / CAPACITY
    print(f"\nfour endpoints, capacity {CAPACITY:.0f} requests/s: {share:.3f} of it, answers by endpoint {shares}")
    print(f"round robin with as many requests for each: {naive / CAPACITY:.3f}")
    assert share >= 0.95


async def round_robin(urls: list[str], rows: int) -> float:
    """Return the throughput of a dispatcher that deals the rows out evenly."""
    clients = [Engine(Endpoint(url=url, model="tiny"), 60) for url in urls]
    places = [asyncio.Semaphore(max(SLOTS)) for _ in clients]

    async def ask(number: int) -> None:
        client, place = clients[number % len(clients)], places[number % len(clients)]
        question = Question(messages=[{"role": "user", "content": f"row {number}"}], tools=[], seed=1, thinking=False)
        async with place:
            await client.ask(question, Sampling())

    start = time.perf_counter()
    await asyncio.gather(*(ask(number) for number in range(rows)))
    seconds = time.perf_counter() - start
    for client in clients:
        await client.close()
    return rows / seconds


def test_one_core_drives_400_requests_a_second(tmp_path: Path) -> None:
    rows = 8000
    bench = Bench(tmp_path)
    bench.spec = bench.spec.but(rows_per_part=2000)
    heard = timed(bench)
    with engines((64,), 0.0) as urls:
        before = time.process_time()
        bench.answers(prompts(rows), *urls)
        cpu = time.process_time() - before
    print(f"\nzero latency: {rows / cpu:.0f} requests per second of processor time, {rows / heard.took:.0f} requests/s")
    assert rows / cpu >= 400


@pytest.mark.parametrize("rows", [10_000, 100_000])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, rows: int) -> None:
    """Peak memory of a process that regenerates so many rows of 2 kB."""
    with engines((64, 64), 0.0) as urls:
        code = f"import tests.benchmarks.bench_regenerate as b; b.regenerate_here({str(tmp_path)!r}, {rows}, {urls!r})"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    megabytes, seconds = map(float, done.stdout.split())
    print(f"\n{rows} rows: peak {megabytes:.0f} MB, {rows / seconds:.0f} rows/s")
    assert megabytes < 300


def regenerate_here(folder: str, rows: int, urls: list[str]) -> None:
    """Regenerate in this process; print its peak memory in MB and the seconds it took."""
    bench = Bench(Path(folder))
    bench.spec = bench.spec.but(rows_per_part=2000)
    noise = random.Random(0)  # text that zstd cannot make small, as text of people is
    ref = bench.publish(prompt(f"id-{number}", f"row {number} {noise.randbytes(1000).hex()}") for number in range(rows))
    heard = timed(bench)
    bench.regenerate(ref, bench.placement(*urls))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, heard.took)
