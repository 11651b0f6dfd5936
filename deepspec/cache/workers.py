"""Several capture processes on one machine; any number more may join from elsewhere."""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from threading import Event, Thread
from typing import Any, cast

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.cache.capture import Capture, count_shards
from deepspec.cache.claims import Claims
from deepspec.cache.spec import CacheSpec
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report, SilentReport
from deepspec.store import Store

PATIENCE = 2.0
"""Seconds between looks at shards that other workers have."""


def work(capture: Capture, claims: Claims, shards: int) -> None:
    """Capture every shard that nobody else has, until all are committed.

    Args:
        capture: this worker.
        claims: of this worker.
        shards: how many there are.
    """
    waiting = list(range(shards))
    while waiting:
        taken = [shard for shard in waiting if claims.take(shard) and _capture(capture, claims, shard)]
        waiting = [shard for shard in waiting if shard not in taken and not capture.is_done(shard)]
        if waiting:
            time.sleep(PATIENCE)


@contextmanager
def helpers(spec: CacheSpec, out: Out, placement: Placement, report: Report) -> Iterator[None]:
    """Run the other processes of a placement beside this one, and tell at once when one of them dies.

    That ends nothing: its claims are void, so those that live take its shards, and whether all are committed is asked
    of the commit marks.
    """
    context = multiprocessing.get_context("spawn")
    told = (spec.model_dump(), dict(out.inputs), out.store.root, out.address, placement)
    children = [
        context.Process(target=_help, args=(rank, *told), daemon=True, name=f"capture worker {rank}")
        for rank in range(1, placement.processes)
    ]
    for child in children:
        child.start()
    given_up = Event()
    watch = Thread(target=_watch, args=(children, given_up, report), daemon=True, name="watch over capture workers")
    watch.start()
    try:
        yield
    except BaseException:
        given_up.set()
        for child in children:
            child.terminate()
        raise
    watch.join()


def _watch(children: Sequence[SpawnProcess], given_up: Event, report: Report) -> None:
    """Reap children as they end, for a claim lives as long as its process is there, and tell which of them died."""
    living = {child.sentinel: child for child in children}
    while living:
        for sentinel in wait(list(living)):
            child = living.pop(cast(int, sentinel))
            child.join()
            if child.exitcode and not given_up.is_set():
                how = f"ended with exit code {child.exitcode} (see its messages above)"
                report.log(f"{child.name} {how}; those that are left go on with its shards")


def device_of(placement: Placement, rank: int) -> Placement:
    """Return the placement of one worker: each takes a device of its own where there are several."""
    return placement.model_copy(update={"device": f"cuda:{rank}"}) if placement.device == "cuda" else placement


def _capture(capture: Capture, claims: Claims, shard: int) -> bool:
    try:
        capture.shard(shard, lambda: claims.renew(shard))
    finally:
        claims.drop(shard)
    return True


def _help(
    rank: int,
    spec: Mapping[str, Any],
    inputs: Mapping[str, ArtifactRef],
    root: str,
    address: str,
    placement: Placement,
) -> None:
    store = Store(root)
    out = Out(store, "target_cache", address, inputs, placement.scratch)
    answers = open_artifact(store, inputs["answers"], placement.scratch)
    given = CacheSpec.model_validate(spec)
    capture = Capture(given, answers, out, device_of(placement, rank), SilentReport())
    work(capture, Claims(out), count_shards(answers))
