"""kill -9 at any moment: the next run goes on, no row is lost, doubled or changed."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from deepspec.artifacts import ArtifactRef, open_artifact, read_manifest, reference
from deepspec.lines.rows import read_rows
from deepspec.messages.conversations import published_rows
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompts
from tests.given.some import some
from tests.regenerate.one_run import ROWS

MOST_IN_FLIGHT = 60
"""More than the two endpoints ever get at a time here."""


def start(bench: Bench, urls: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.regenerate.one_run", str(bench.folder), *urls]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def committed(bench: Bench, ref: ArtifactRef) -> dict[str, object]:
    """Return the rows of all committed parts by id."""
    out = bench.out(ref)
    paths = [bench.store.local_path(f"{out.prefix}/{e.key}") for mark in out.parts() for e in mark.files.values()]
    return {row["id"]: row for path in paths for _, row in read_rows(some(path))}


def kill_and_resume(bench: Bench, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(5, ROWS - 10), kills))
    ref = bench.publish(prompts(ROWS))
    engines = [Simulated(slots=4, seconds=0.01, uneven=True) for _ in range(2)]
    before: dict[str, object] = {}
    with serve(*engines) as servers:
        urls = [server.engine.url for server in servers]
        for moment in moments:
            with start(bench, urls) as process:
                while sum(engine.rows for engine in engines) < moment and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(chance.random() * 0.05)
                process.send_signal(signal.SIGKILL)
            after = committed(bench, ref)
            assert {sample_id: after[sample_id] for sample_id in before} == before
            before = after
        with start(bench, urls) as process:
            pass
    assert process.returncode == 0
    asked = Counter(body["messages"][0]["content"] for engine in engines for body in engine.row_bodies)
    assert sum(asked.values()) <= ROWS + kills * MOST_IN_FLIGHT
    check_final(bench, ref, before)


def check_final(bench: Bench, ref: ArtifactRef, before: dict[str, object]) -> None:
    out = bench.out(ref)
    manifest = some(read_manifest(bench.store, out.kind, out.address))
    rows = list(published_rows(open_artifact(bench.store, reference(bench.store, manifest), bench.folder)))
    assert [row["id"] for row in rows] == [f"id-{number}" for number in range(ROWS)]
    assert {row["status"] for row in rows} == {"success"}
    assert manifest.counts["success"] == manifest.counts["input"] == ROWS
    by_id = {row["id"]: row for row in rows}
    assert {sample_id: by_id[sample_id] for sample_id in before} == before


def test_two_kills_lose_and_double_nothing(bench: Bench) -> None:
    kill_and_resume(bench, seed=1, kills=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [11, 12])
def test_twenty_kills_lose_and_double_nothing(bench: Bench, seed: int) -> None:
    kill_and_resume(bench, seed, kills=20)


def test_a_run_that_is_asked_to_stop_keeps_its_rows_and_goes_on(bench: Bench) -> None:
    ref = bench.publish(prompts(ROWS))
    with serve(Simulated(slots=2, seconds=0.01)) as (engine,):
        with start(bench, [engine.engine.url]) as process:
            while engine.engine.rows < 50:
                time.sleep(0.002)
            process.send_signal(signal.SIGTERM)
            stopped = process.wait(10)
        assert stopped == 1  # CancelledError; the child process of a run turns it into its exit code
        asked = engine.engine.rows
        artifact = Bench(bench.folder).regenerate(ref, bench.placement(engine.engine.url))
        assert asked > 40
        assert engine.engine.rows <= ROWS + MOST_IN_FLIGHT
    assert artifact.counts["success"] == ROWS
