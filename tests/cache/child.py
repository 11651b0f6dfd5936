"""Builds a cache as a process of its own, telling every step, so that a test can kill it at any of them."""

import os
from multiprocessing.connection import Connection
from pathlib import Path

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.cache.run import run
from deepspec.store import Store
from tests.cache.made import out_for, placement_for, spec_for
from tests.heard import Heard


class Telling(Heard):
    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        self._pipe.send("step")


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
