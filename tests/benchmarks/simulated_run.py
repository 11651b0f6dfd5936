"""Trains on states of throttled engines as a process of its own, which a benchmark kills; each step takes its time."""

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch._dynamo  # noqa: F401 - the first optimizer step of a process would

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.placement import Endpoint
from deepspec.steps.reader import Reader
from deepspec.store import Store
from deepspec.train.loop import Loop
from deepspec.train.spec import TrainSpec
from tests.given.engines.training import train
from tests.given.heard import Heard


class Notice(NamedTuple):
    """What the process tells."""

    kind: str
    """step: one ended; waits: the loop waits for states from now on; waited: it has them."""
    at: float
    waited: float
    """Seconds that the loop has waited, the wait that begins left out."""
    step: int = 0
    sample_ids: tuple[str, ...] | list[str] = ()
    """That the step read."""


def main(
    pipe: Connection, root: str, target: Path, cache: ArtifactRef, spec: TrainSpec, engines: tuple[Endpoint, ...],
    limit: int, seconds: float,
) -> None:  # fmt: skip
    """Train a draft, telling when the loop waits and when each step ended; one takes so many seconds."""
    store, count, wait = Store(root), Loop._count, Reader._wait
    begun: list[tuple[float, float]] = []
    """When steps began, each with the seconds that the loop had waited until then; the first at its first states."""

    def stepped(self: Loop, step: Any, *args: Any, **more: Any) -> None:
        at, before = begun[-1]
        computed = time.monotonic() - at - (self.reader.waited - before)
        time.sleep(max(0.0, seconds - computed))  # so that a busy machine makes no step longer, as far as that goes
        count(self, step, *args, **more)
        begun.append((time.monotonic(), self.reader.waited))
        pipe.send(Notice("step", time.monotonic(), self.reader.waited, self.progress.step, step.sample_ids))

    def waited(self: Reader, future: Any) -> Any:
        pipe.send(Notice("waits", time.monotonic(), self.waited))
        found = wait(self, future)
        if not begun:
            begun.append((time.monotonic(), self.waited))
        pipe.send(Notice("waited", time.monotonic(), self.waited))
        return found

    Loop._count = stepped  # type: ignore[method-assign]
    Reader._wait = waited  # type: ignore[method-assign]
    scratch = Path(root).parent / "scratch"
    opened = open_artifact(store, cache, scratch)
    train(store, scratch, opened, target, spec, Heard(), *engines, staging_limit=limit)
