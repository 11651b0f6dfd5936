"""Run one stage in a child process under the guard, and turn its events into a report, a reference or an error."""

import base64
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deepspec import errors
from deepspec.artifacts import ArtifactRef, Placement, Report, Spec
from deepspec.errors import ChildError, DeepSpecError, EngineError
from deepspec.plan.resolve import Resolved
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.stages import Stage, address, find_fresh
from deepspec.store import Store
from infra.child import EVENT, Job
from infra.engines import EngineOptions, start_engines
from infra.launch import run_guarded
from infra.settings import torch_env

PROMPT_ROOM = 2048
"""Tokens of context that the embedded engine has for a prompt, beside the answer."""


class Site(BaseModel):
    """Where a run happens: the store's root and the placement. Nothing here changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str
    """Local folder or `s3://bucket/prefix` that artifacts are published under."""
    placement: Placement
    gguf: str | None = None
    """GGUF file of the target, which the embedded engine serves where no endpoints are given."""

    def at(self, resolved: Resolved) -> "Site":
        """Return the site with the places of everything that a plan names."""
        located = {**self.placement.locations, **resolved.locations}
        placement = self.placement.model_copy(update={"locations": located})
        gguf = str(resolved.files.gguf) if resolved.files.gguf else None
        return self.model_copy(update={"placement": placement, "gguf": gguf})


class Events:
    """Reads a child's lines: events go to a report, the reference and the error are kept."""

    def __init__(self, report: Report) -> None:
        """Listen on behalf of a report."""
        self._report = report
        self.ref: ArtifactRef | None = None
        self.error: DeepSpecError | None = None

    def line(self, line: str) -> None:
        """Take one line of output."""
        if line.startswith(EVENT):
            self._event(json.loads(line.removeprefix(EVENT)))

    def _event(self, event: dict[str, Any]) -> None:
        match event.pop("event"):
            case "progress":
                self._report.progress(**event)
            case "log":
                self._report.log(**event)
            case "table":
                self._report.table(**event)
            case "figure":
                self._report.figure(event["key"], base64.b64decode(event["png"]))
            case "markdown":
                self._report.markdown(**event)
            case "result":
                self.ref = ArtifactRef.model_validate(event["ref"])
            case "error":
                self.error = errors.rebuilt(event["type"], event["message"])


def run_stage(stage: Stage, spec: Spec, inputs: dict[str, ArtifactRef], site: Site, report: Report) -> ArtifactRef:
    """Return the stage's artifact, made in a child process unless a fresh one is published.

    Raises:
        DeepSpecError: the error that the child raised, or ChildError where it died without one.
    """
    store = Store(site.root)
    found = find_fresh(stage, spec, inputs, store)
    if found is not None:
        return found
    where = address(stage, spec, {kind: ref.address for kind, ref in inputs.items()})
    path = site.placement.scratch / "jobs" / f"{stage.name}-{where}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.with_name(f"{path.name}.log")
    try:
        with _engines(stage, spec, site, path) as placement:
            job = Job(
                stage=stage.name,
                spec=spec.model_dump(mode="json"),
                inputs={kind: inputs[kind] for kind in stage.inputs},
                root=site.root,
                placement=placement,
            )
            return run_job(job, path, report)
    finally:
        if log.exists():
            store.put_file(log, f"logs/{log.name}")


@contextmanager
def _engines(stage: Stage, spec: Spec, site: Site, path: Path) -> Iterator[Placement]:
    """Yield the placement with engines: those given, or the embedded one for as long as the block runs."""
    placement = site.placement
    if not isinstance(spec, RegenerateSpec) or spec.answers is not None or placement.endpoints:
        yield placement
        return
    if site.gguf is None:
        raise EngineError(
            f"{stage.name}: no engine: the embedded one serves GGUF files and this target has none; "
            "start an engine that serves it and give --endpoint URL --model NAME"
        )
    options = EngineOptions(
        model=Path(site.gguf),
        name="target",
        context=spec.sampling.max_tokens + PROMPT_ROOM,
        threads=placement.threads or os.cpu_count() or 1,
    )
    with start_engines(options, path.with_name(f"{path.name}-engines")) as endpoints:
        yield placement.model_copy(update={"endpoints": endpoints})


def run_job(job: Job, path: Path, report: Report) -> ArtifactRef:
    """Run a job under the guard; `path` without suffix names its job file and its log."""
    job_file, log = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.log")
    job_file.write_text(job.model_dump_json())
    command = [*_launcher(job), "-m", "infra.child", str(job_file)]
    events = Events(report)
    try:
        run_guarded(command, log_path=log, env=torch_env(job.placement.threads), on_line=events.line)
    except ChildError as failure:
        raise events.error or failure from failure
    finally:
        job_file.unlink()
    if events.ref is None:
        raise ChildError(" ".join(command), 0, "it ended without telling which artifact it published")
    return events.ref


def _launcher(job: Job) -> list[str]:
    """Return the interpreter, behind torch's launcher where a stage runs on several ranks."""
    if job.stage != "train" or job.placement.processes == 1:
        return [sys.executable]
    ranks = f"--nproc-per-node={job.placement.processes}"
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks]
