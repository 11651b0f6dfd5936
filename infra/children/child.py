"""One stage in a process of its own: `python -m infra.children.child JOB.json`.

It tells its parent what it does as events: lines that start with the ASCII record separator (RFC 7464) and hold one
JSON object. They go through a pipe of their own where a guard offers one, so that nothing else that writes to stdout
can tear them; else to stdout, where any other line is plain log. Under a launcher of several ranks every rank runs the
stage; the first one publishes and speaks.
"""

import base64
import json
import os
import stat
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SecretStr

from deepspec.artifacts import ArtifactRef
from deepspec.errors import DeepSpecError
from deepspec.placement import Placement
from deepspec.report import SilentReport
from deepspec.stages import Shards, Work, join, materialize, stage_named
from deepspec.store import Store
from infra.processes.guard import EVENT, EVENTS, SAVING
from infra.settings import secret

_WRITING = threading.Lock()


class Job(BaseModel):
    """What a child is asked to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    spec: dict[str, Any]
    inputs: dict[str, ArtifactRef]
    root: str
    placement: Placement
    do: Literal["stage", "count", "shard"] = "stage"
    """The whole stage, the number of its shards, or one of them."""
    shard: int = 0
    ray: str | None = None
    """Address of the Ray cluster on which several ranks run; None: they run here."""


class EventReport:
    """A report that writes events for the parent."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Tell how far the stage is."""
        emit(event="progress", done=done, total=total, unit=unit, note=note)

    def log(self, message: str) -> None:
        """Say one line."""
        emit(event="log", message=message)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Show rows."""
        emit(event="table", key=key, rows=rows)

    def figure(self, key: str, png: bytes) -> None:
        """Show a picture."""
        emit(event="figure", key=key, png=base64.b64encode(png).decode())

    def markdown(self, key: str, text: str) -> None:
        """Show a text."""
        emit(event="markdown", key=key, text=text)

    def saving(self, seconds: float) -> None:
        """Tell how long saving takes; the guard hears it, too."""
        emit(event=SAVING, seconds=round(seconds, 1))


def emit(**event: Any) -> None:
    """Write one event in one piece, whichever thread it comes from."""
    data = f"{EVENT}{json.dumps(event)}\n".encode()
    with _WRITING:
        while data:
            data = data[os.write(_events(), data) :]  # a signal may end a write early


@cache
def _events() -> int:
    """Return the descriptor of events: the guard's pipe for them, or stdout, as for ranks after the first."""
    path = os.environ.get(EVENTS, "")
    if path and _rank() == 0:
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except OSError:  # this process sees another /proc
            return sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    return sys.stdout.fileno()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def work(job: Job, rank: int) -> None:
    """Run a job's stage; the first rank publishes and tells the reference."""
    stage = stage_named(job.stage)
    spec = stage.spec.model_validate(job.spec)
    placement = with_keys(job.placement)
    report = EventReport() if rank == 0 else SilentReport()
    asked = Work(stage=stage, spec=spec, inputs=job.inputs, store=Store(job.root), placement=placement, report=report)
    if job.do == "count":
        emit(event="shards", count=Shards(asked).count())
    elif job.do == "shard":
        Shards(asked).make(job.shard)
    elif rank != 0:
        join(asked)
    else:
        emit(event="result", ref=materialize(asked).model_dump())


def main(arguments: list[str]) -> int:
    """Run the job in the named file; return the exit code."""
    job = Job.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        work(job, _rank())
    except DeepSpecError as error:
        traceback.print_exc()
        emit_error(error)
        return error.status
    return 0


def emit_error(error: DeepSpecError) -> None:
    """Tell the parent which error of the tree ended this process."""
    emit(event="error", type=type(error).__name__, message=str(error))


def with_keys(placement: Placement) -> Placement:
    """Return the placement with the endpoints' keys, filled in here and nowhere else, from the environment.

    Raises:
        SpecError: a variable is not set.
    """
    endpoints = tuple(
        endpoint.model_copy(update={"api_key": SecretStr(secret(endpoint.key_variable))})
        if endpoint.key_variable
        else endpoint
        for endpoint in placement.endpoints
    )
    return placement.model_copy(update={"endpoints": endpoints})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
