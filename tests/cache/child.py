"""Builds a cache as a process of its own, telling every step, so that a test can kill it at any of them."""

import os
from multiprocessing.connection import Connection
from pathlib import Path

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.cache.run import run
from deepspec.store import Store
from tests.given.killed import Telling
from tests.given.published.caches import out_for, placement_for, spec_for


def main(
    pipe: Connection, root: str, scratch: Path, target: Path, answers: ArtifactRef, environment: dict[str, str]
) -> None:
    """Capture the answers of that reference and publish the cache."""
    os.environ.update(environment)
    store = Store(root)
    opened = open_artifact(store, answers, scratch)
    spec, out = spec_for(target, part_bytes=60_000), out_for(store, scratch, opened)
    counts = run(spec, {"answers": opened}, out, placement_for(target, scratch), Telling(pipe))
    out.publish(spec, 1, counts)
