"""Trains on states of throttled engines as a process of its own, which a benchmark kills; each step takes its time."""

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - the first optimizer step of a process would, for a minute on a busy machine

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.placement import Endpoint
from deepspec.store import Store
from deepspec.train.loop import Loop
from deepspec.train.spec import TrainSpec
from tests.given.engines.training import train
from tests.given.heard import Heard


def main(
    pipe: Connection, root: str, target: Path, cache: ArtifactRef, spec: TrainSpec, engines: tuple[Endpoint, ...],
    limit: int, seconds: float,
) -> None:  # fmt: skip
    """Train a draft, telling when each step ended and how long the loop has waited; one takes so many seconds."""
    store, count = Store(root), Loop._count

    def told(self: Loop, step: Any, *args: Any) -> None:
        time.sleep(seconds)
        count(self, step, *args)
        pipe.send((time.monotonic(), self.progress.step, self.reader.waited))

    Loop._count = told  # type: ignore[method-assign]
    scratch = Path(root).parent / "scratch"
    opened = open_artifact(store, cache, scratch)
    train(store, scratch, opened, target, spec, Heard(), *engines, staging_limit=limit)
