"""Run one stage in a child process under the guard, and turn its events into a report, a reference or an error."""

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deepspec import errors
from deepspec.artifacts import ArtifactRef, Spec, open_artifact
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.disk import writing
from deepspec.errors import CancelledError, ChildError, DeepSpecError, StoreError
from deepspec.page.page import code
from deepspec.placement import Placement
from deepspec.plan.resolve import Resolved
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.report import Report
from deepspec.stages import Stage, address, find_fresh
from deepspec.store import Store
from infra.caps import Caps
from infra.child import Job
from infra.engines import PROMPT_ROOM, ManagedEngines, Served, start_engines
from infra.guard import EVENT
from infra.launch import run_guarded
from infra.serving import serving_draft
from infra.settings import default_root, nodes, scratch_dir, secret, torch_env


class FanOut(BaseModel):
    """How the shards of a stage are shared out; one worker: the stage makes them itself, in one child."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, gt=0)
    """Shards at a time; on Ray, what the cluster has room for."""
    runner: Literal["threads", "ray", "deployment"] = "threads"
    """Children here, tasks of a Ray cluster, or runs of a deployment (in a Kubernetes pool, say)."""
    address: str | None = None
    """Of the Ray cluster, or name of the deployment, such as shard/kubernetes."""


class Site(BaseModel):
    """Where a run happens: the store's root and the placement. Nothing here changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str = Field(default_factory=default_root)
    """Local folder or `s3://bucket/prefix` that artifacts are published under."""
    placement: Placement = Field(default_factory=lambda: Placement(scratch=scratch_dir()))
    engines: ManagedEngines = ManagedEngines()
    """What the run starts to answer prompts, where the placement gives no endpoints."""
    gguf: Path | None = None
    """The target as a GGUF file, for engines that serve one; known once the plan is resolved."""
    folder: Path | None = None
    """The target as a Hugging Face folder; the same."""
    limit: str | None = None
    """Name of a Prefect concurrency limit; one of its slots is held by every stage while it computes."""
    fan_out: FanOut = FanOut()
    caps: Caps = Caps()
    """What the run may use up; set by the flow from its plan."""

    @field_validator("placement", mode="before")
    @classmethod
    def _has_scratch(cls, placement: Any) -> Any:
        """Let a placement given as JSON, in a deployment say, leave the scratch folder to the machine it runs on."""
        return {"scratch": scratch_dir(), **placement} if isinstance(placement, dict) else placement

    def check_keys(self) -> None:
        """Return where every key that an endpoint names as a variable is set.

        Raises:
            SpecError: one is not; the message names it, never a value.
        """
        for endpoint in self.placement.endpoints:
            if endpoint.api_key_env:
                secret(endpoint.api_key_env)

    def at(self, resolved: Resolved) -> "Site":
        """Return the site with the places of everything that a plan names."""
        located = {**self.placement.locations, **resolved.locations}
        placement = self.placement.model_copy(update={"locations": located})
        files = resolved.files
        return self.model_copy(update={"placement": placement, "gguf": files.gguf, "folder": files.folder})


SHOWN = 200
"""Characters of a line that are logged where it looks like an event and is none."""


class Events:
    """Reads a child's lines: events go to a report, the reference and the error are kept."""

    def __init__(self, report: Report) -> None:
        """Listen on behalf of a report."""
        self._report = report
        self.ref: ArtifactRef | None = None
        self.shards: int | None = None
        self.error: DeepSpecError | None = None

    def line(self, line: str) -> None:
        """Take one line of output; one that looks like an event and is none is a line of the log."""
        _, is_event, told = line.partition(EVENT)  # launchers put the name of a rank in front
        if is_event and not self._event(told):
            self._report.log(f"not an event: {told[:SHOWN]}{'…' if len(told) > SHOWN else ''}")

    def _event(self, told: str) -> bool:
        """Pass an event on; return False where it is none."""
        try:
            event = _parsed(told)
        except (ValueError, TypeError):
            return False
        match event:
            case {"event": "progress", "done": int() | float(), "total": int() | float(), "unit": str(), "note": str()}:
                self._report.progress(event["done"], event["total"], event["unit"], event["note"])
            case {"event": "log", "message": str(message)}:
                self._report.log(message)
            case {"event": "table", "key": str(key), "rows": list(rows)}:
                self._report.table(key, rows)
            case {"event": "figure", "key": str(key), "png": bytes(png)}:
                self._report.figure(key, png)
            case {"event": "markdown", "key": str(key), "text": str(text)}:
                self._report.markdown(key, text)
            case _:
                return self._end(event)
        return True

    def _end(self, event: Any) -> bool:
        """Keep what a child says last; return False where it is no event."""
        match event:
            case {"event": "result", "ref": ArtifactRef() as ref}:
                self.ref = ref
            case {"event": "shards", "count": int(count)}:
                self.shards = count
            case {"event": "error", "type": str(name), "message": str(message)}:
                if self.error is None or isinstance(self.error, CancelledError):  # a rank that was asked to stop
                    self.error = errors.rebuilt(name, message)  # knows less than the one that failed
            case _:
                return False
        return True


def _parsed(told: str) -> Any:
    """Return the object in an event, its picture and its reference read.

    Raises:
        ValueError, TypeError: it is none.
    """
    event = json.loads(told)
    if isinstance(event, dict) and "png" in event:
        return {**event, "png": base64.b64decode(event["png"], validate=True)}
    if isinstance(event, dict) and "ref" in event:
        return {**event, "ref": ArtifactRef.model_validate(event["ref"])}
    return event


def run_stage(
    stage: Stage,
    spec: Spec,
    inputs: dict[str, ArtifactRef],
    site: Site,
    report: Report,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> ArtifactRef:
    """Return the stage's artifact, made in a child process unless a fresh one is published.

    Args:
        stage: the row of the table.
        spec: what changes the result.
        inputs: kind -> reference.
        site: where to run.
        report: who listens.
        keys: variable -> key of an endpoint: given to the child in its environment, written nowhere.

    Raises:
        DeepSpecError: the error that the child raised, or ChildError where it died without one.
    """
    store = Store(site.root)
    found = find_fresh(stage, spec, inputs, store)
    if found is not None:
        return found
    site.caps.check(store)
    where = address(stage, spec, {kind: ref.address for kind, ref in inputs.items()})
    path = site.placement.scratch / "jobs" / f"{stage.name}-{where}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _engines(spec, inputs, site, path, report) as placement:
            job = child_job(stage, spec, inputs, site.model_copy(update={"placement": placement}))
            caps = site.caps.at(f"{stage.kind}/{where}")
            told = run_job(job, path, report, keys, stop=lambda: caps.reached_now(store)).ref
    finally:
        report.markdown("log", f"Everything that it printed: {code(keep_logs(path, store))}")
    ref = told or find_fresh(stage, spec, inputs, store)  # on machines after the first, another one published
    if ref is None:
        raise ChildError(f"the child of stage {stage.name}", 0, "it ended well and published nothing")
    report.log(ref.uri)
    return ref


def child_job(stage: Stage, spec: Spec, inputs: Mapping[str, ArtifactRef], site: Site) -> Job:
    """Return what a child is asked to do for a stage."""
    return Job(
        stage=stage.name,
        spec=spec.model_dump(mode="json"),
        inputs={kind: inputs[kind] for kind in stage.inputs},
        root=site.root,
        placement=site.placement,
        ray=site.fan_out.address or "auto" if site.fan_out.runner == "ray" else None,
    )


def keep_logs(path: Path, store: Store) -> str:
    """Publish what a job and its ranks and engines printed; return where it lies.

    A store that cannot take it, a full one say, hides no error of the job: it stays where it was printed to.
    """
    logs = [path.with_name(f"{path.name}.log"), *sorted(path.parent.glob(f"{path.name}-*/**/*.log"))]
    try:
        for log in logs:
            if log.exists() and log.stat().st_size:
                store.put_file(log, f"logs/{path.name}/{'-'.join(log.relative_to(path.parent).parts[1:]) or 'job.log'}")
    except StoreError as error:
        return f"{logs[0]} ({error})"
    return store.uri(f"logs/{path.name}")


@contextmanager
def _engines(
    spec: Spec, inputs: Mapping[str, ArtifactRef], site: Site, path: Path, report: Report
) -> Iterator[Placement]:
    """Yield the placement with engines: those given, or our own for as long as the block runs."""
    placement, folder = site.placement, path.with_name(f"{path.name}-engines")
    if isinstance(spec, BenchmarkSpec) and spec.engine_samples:
        opened = {kind: open_artifact(Store(site.root), ref, placement.scratch) for kind, ref in inputs.items()}
        with serving_draft(opened, placement, site.gguf, folder, report) as serving:
            yield serving
        return
    if not isinstance(spec, RegenerateSpec) or spec.answers is not None or placement.endpoints:
        yield placement
        return
    served = Served(
        name="target",
        gguf=site.gguf,
        folder=site.folder,
        context=spec.sampling.max_tokens + PROMPT_ROOM,
        threads=placement.threads,
    )
    with start_engines(site.engines, served, folder) as endpoints:
        yield placement.model_copy(update={"endpoints": endpoints})


def run_job(
    job: Job,
    path: Path,
    report: Report,
    keys: Mapping[str, str] = MappingProxyType({}),
    stop: Callable[[], DeepSpecError | None] = lambda: None,
) -> Events:
    """Run a job under the guard and return what it told; `path` without suffix names its job file and its log.

    Raises:
        DeepSpecError: the error that the child raised, what `stop` returned, or ChildError where it died without one.
    """
    job_file, log = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.log")
    with writing(job_file):
        job_file.write_text(job.model_dump_json())
    events = Events(report)
    env = {**torch_env(job.placement.threads), **keys}
    try:
        run_guarded(_command(job, job_file), log_path=log, env=env, on_line=events.line, stop=stop)
    except ChildError as failure:
        raise events.error or failure from failure
    finally:
        job_file.unlink()
    return events


def _command(job: Job, job_file: Path) -> list[str]:
    """Return the command of a job: the child itself, or the launcher of several ranks of it."""
    several = job.stage == "train" and job.placement.processes * nodes().count > 1
    if several and job.ray is not None:
        return [sys.executable, "-m", "infra.ray_ranks", str(job_file), job.ray]
    if several:
        return [sys.executable, "-m", "infra.ranks", str(job_file), str(job_file.with_name(f"{job_file.stem}-ranks"))]
    return [sys.executable, "-m", "infra.child", str(job_file)]
