"""Asks an engine as a process of its own, telling every step, so that a test can kill it anywhere."""

import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.cache.run import run
from deepspec.cache.spec import CacheSpec
from deepspec.placement import Endpoint
from deepspec.regenerate import run as stage
from deepspec.store import Store
from tests.given.engines.one_pass import Line
from tests.given.killed import Telling
from tests.given.published.caches import out_for, placement_for


def main(
    pipe: Connection, root: str, scratch: Path, target: Path, answers: ArtifactRef, told: tuple[CacheSpec, Endpoint]
) -> None:
    """Capture the answers of that reference and publish the cache."""
    store, (spec, endpoint) = Store(root), told
    opened = open_artifact(store, answers, scratch)
    out = out_for(store, scratch, opened)
    placement = placement_for(target, scratch, endpoints=(endpoint,))
    counts = run(spec, {"answers": opened}, out, placement, Telling(pipe))
    out.publish(spec, 1, counts)


def both(pipe: Connection, target: Path, folder: Path, endpoint: Endpoint, env: Mapping[str, str]) -> None:
    """Answer the prompts and capture what comes with the answers, telling steps as they come."""
    os.environ.update(env)  # by which a store is found: that of the server that children are forked from is older
    stage.TICK_SECONDS = 0.002
    line = Line(target, folder)
    line.heard = Telling(pipe)
    spec = line.cache_spec(part_bytes=20_000)
    line.cache(spec, line.answers(spec, endpoint))
