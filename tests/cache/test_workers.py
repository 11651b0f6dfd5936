"""Several workers share the shards; the bytes do not tell how many there were."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.artifacts import Artifact
from deepspec.cache.capture import Capture, count_shards
from deepspec.cache.claims import EXPIRY, Claims
from deepspec.cache.run import finish, run
from deepspec.cache.workers import helpers, work
from deepspec.publish import Out
from deepspec.store import Store
from tests.given.heard import Heard
from tests.given.published.caches import build, out_for, placement_for, publish_answers, rows, spec_for
from tests.given.some import some


@pytest.fixture
def answers(store: Store, tmp_path: Path) -> Artifact:
    return publish_answers(store, tmp_path, [rows(4, seed=seed) for seed in range(5)])


def claim(out: Out, shard: int, **changes: Any) -> None:
    """Leave a claim as another worker would."""
    told = {"attempt": "other", "host": socket.gethostname(), "pid": 1, "time": time.time(), **changes}
    key = f"{out.prefix}/claims/{out.scratch.name}/shard-{shard:05d}.json"
    out.store.write_bytes(key, json.dumps(told).encode())


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_one_worker_at_a_time_has_a_shard(store: Store, answers: Artifact, tmp_path: Path) -> None:
    out = out_for(store, tmp_path, answers)
    claims = Claims(out)
    assert claims.take(0)
    assert claims.take(0)
    claim(out, 1)
    assert not claims.take(1)
    claims.drop(0)
    claim(out, 0)
    assert not claims.take(0)


def test_a_worker_begins_on_its_own_card_and_takes_no_memory_of_the_first(
    target: Path, store: Store, answers: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    for where in ("cuda:3", "cpu", "meta"):
        loaded = SimpleNamespace(device=torch.device(where), shape=SimpleNamespace(general=False, told=()))
        monkeypatch.setattr("deepspec.cache.capture.load_placed", lambda *_, found=loaded: found)
        out = out_for(store, tmp_path, answers)
        found: Any = Capture(spec_for(target), answers, out, placement_for(target, tmp_path), Heard()).target
        assert found is loaded
    assert told == [torch.device("cuda", 3)]


def test_a_claim_of_a_dead_process_is_void(store: Store, answers: Artifact, tmp_path: Path) -> None:
    out = out_for(store, tmp_path, answers)
    claim(out, 0, pid=dead_process())
    assert Claims(out).take(0)


def test_a_claim_of_an_earlier_attempt_of_this_process_is_void(store: Store, answers: Artifact, tmp_path: Path) -> None:
    out = out_for(store, tmp_path, answers)
    claim(out, 0, pid=os.getpid())
    assert Claims(out).take(0)


@pytest.mark.parametrize(("age", "taken"), [(0.0, False), (EXPIRY + 1, True)])
def test_a_claim_on_another_host_lives_while_it_shows_life(
    store: Store, answers: Artifact, tmp_path: Path, age: float, taken: bool
) -> None:
    out = out_for(store, tmp_path, answers)
    claim(out, 0, host="elsewhere", time=time.time() - age)
    assert Claims(out).take(0) is taken


def test_a_torn_claim_is_void(store: Store, answers: Artifact, tmp_path: Path) -> None:
    out = out_for(store, tmp_path, answers)
    store.write_bytes(f"{out.prefix}/claims/{out.scratch.name}/shard-00000.json", b'{"attempt": ')
    assert Claims(out).take(0)


def test_two_processes_write_what_one_writes(target: Path, store: Store, answers: Artifact, tmp_path: Path) -> None:
    spec = spec_for(target)
    alone = build(spec, target, answers, Store(tmp_path / "alone"), tmp_path / "alone")
    out = out_for(store, tmp_path, answers)
    counts = run(spec, {"answers": answers}, out, placement_for(target, tmp_path, processes=2), Heard())
    assert out.publish(spec, 1, counts).content == alone.content


def test_a_helper_that_dies_is_told_and_its_shards_are_taken(
    target: Path, store: Store, answers: Artifact, tmp_path: Path
) -> None:
    spec, report = spec_for(target), Heard()
    alone = build(spec, target, answers, Store(tmp_path / "alone"), tmp_path / "alone")
    out, placement = out_for(store, tmp_path, answers), placement_for(target, tmp_path, processes=2)
    capture = Capture(spec, answers, out, placement, report)
    with helpers(spec, out, placement, report):
        (helper,) = multiprocessing.active_children()
        claim(out, 0, pid=helper.pid)
        os.kill(some(helper.pid), signal.SIGKILL)
        work(capture, Claims(out), count_shards(answers))
    told = (
        "capture worker 1 ended with exit code -9 (see its messages above); those that are left go on with its shards"
    )
    assert told in report.lines
    counts = finish(spec, {"answers": answers}, out, Heard())
    assert out.publish(spec, 1, counts).content == alone.content


def test_helpers_end_with_a_run_that_fails(target: Path, store: Store, answers: Artifact, tmp_path: Path) -> None:
    report = Heard()

    class StopError(Exception):
        pass

    def stopped() -> None:
        with helpers(spec_for(target), out_for(store, tmp_path, answers), placement, report):
            found.extend(multiprocessing.active_children())
            raise StopError

    placement, found = placement_for(target, tmp_path, processes=2), list[BaseProcess]()
    with pytest.raises(StopError):
        stopped()
    for helper in found:
        helper.join()
    assert len(found) == 1
    assert report.lines == []


def test_two_writers_at_the_same_time_publish_one_artifact(
    target: Path, store: Store, answers: Artifact, tmp_path: Path
) -> None:
    spec = spec_for(target)
    alone = build(spec, target, answers, Store(tmp_path / "alone"), tmp_path / "alone")
    contents: list[str] = []
    writers = [
        threading.Thread(target=lambda n=n: contents.append(build(spec, target, answers, store, tmp_path / n).content))
        for n in ("one", "two")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert contents == [alone.content] * 2
