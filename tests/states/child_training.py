"""Trains on states of an engine as a process of its own, telling what each step reads, so that a test can kill it."""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.placement import Endpoint
from deepspec.store import Store
from deepspec.train.loop import Loop
from deepspec.train.spec import TrainSpec
from tests.given.engines.training import train
from tests.given.heard import Heard


def main(
    pipe: Connection,
    root: str,
    target: Path,
    cache: ArtifactRef,
    spec: TrainSpec,
    engines: Sequence[Endpoint],
    limit: int,
) -> None:
    """Train a draft on the cache of that reference, and publish it."""
    store, count = Store(root), Loop._count

    def told(self: Loop, step: Any, *args: Any, **more: Any) -> None:
        pipe.send((self.progress.step, step.sample_ids))
        count(self, step, *args, **more)

    Loop._count = told  # type: ignore[method-assign]
    scratch = Path(root).parent / "scratch"
    opened = open_artifact(store, cache, scratch)
    train(store, scratch, opened, target, spec, Heard(), *engines, staging_limit=limit)
