"""Run one stage in a child process under the guard, and turn its events into a report, a reference or an error."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import cast

from deepspec.artifacts import ArtifactRef
from deepspec.disk import writing
from deepspec.errors import ChildError, DeepSpecError, EngineError, StoreError
from deepspec.page.page import code
from deepspec.placement import Endpoint, Placement
from deepspec.report import Report
from deepspec.stages import Work, address, find_fresh
from deepspec.store import Store
from infra.children.child import Job
from infra.children.events import Events
from infra.children.lease import leased
from infra.children.turn import turn
from infra.engines.managed import PROMPT_ROOM, Served, start_engines
from infra.engines.serving import ServingSettings, serving_draft
from infra.engines.states import Options, StatesServer, managed, staging_folder
from infra.processes.launch import run_guarded
from infra.settings import nodes, torch_env
from infra.site import Site


def run_stage(work: Work, site: Site, keys: Mapping[str, str] = MappingProxyType({})) -> ArtifactRef:
    """Return the stage's artifact, made in a child process unless a fresh one is published.

    Args:
        work: what is made, from what, and who listens.
        site: where to run.
        keys: variable -> key of an endpoint: given to the child in its environment, written nowhere.

    Raises:
        DeepSpecError: the error that the child raised, or ChildError where it died without one.
    """
    found = find_fresh(work.stage, work.spec, work.inputs, work.store)
    if found is not None:
        return found
    site.caps.check(work.store)
    with _turn(work, site):
        found = find_fresh(work.stage, work.spec, work.inputs, work.store)  # what a run before this one published
        return _made(work, site, keys) if found is None else found


@contextmanager
def _turn(work: Work, site: Site) -> Iterator[None]:
    """Hold a stage for a block: no other run of this data folder makes it, nor one of the store that shows life.

    Machines that train together all make it, and so do those that divide its shards among them.
    """
    if nodes().count > 1:
        yield
        return
    wait, where = _Waiting(work, site), f"{work.stage.kind}/{_where(work)}"
    with (
        turn(work.placement.scratch / where, lambda: wait("another run of this data folder")),
        nullcontext() if work.stage.claims else leased(work.store, f"{where}/claims/run.json", wait.elsewhere),
    ):
        yield


class _Waiting:
    """Says once each for whom a run waits, and ends the waiting where a cap is reached."""

    def __init__(self, work: Work, site: Site) -> None:
        """Have said nothing."""
        self._work, self._site, self._said = work, site, set[str]()

    def __call__(self, who: str) -> None:
        """Say that somebody makes the same, unless it was said."""
        if who not in self._said:
            self._work.report.log(f"{who} makes the same; waiting for its end")
        self._said.add(who)
        self._site.caps.check(self._work.store)

    def elsewhere(self, host: str) -> None:
        """Say the same of a run on a host."""
        self(f"another run of this store, on {host},")


def _where(work: Work) -> str:
    return address(work.stage, work.spec, {name: ref.address for name, ref in work.inputs.items()})


def _made(work: Work, site: Site, keys: Mapping[str, str]) -> ArtifactRef:
    stage, store, report, where = work.stage, work.store, work.report, _where(work)
    path = job_path(site, f"{stage.name}-{where}")
    try:
        with _engines(work, site, path) as placement:
            job = child_job(replace(work, placement=placement), site)
            caps = site.caps.at(f"{stage.kind}/{where}")
            told = run_job(job, path, report, keys, stop=lambda: caps.reached_now(store)).ref
    finally:
        report.markdown("log", f"Everything that it printed: {code(keep_logs(path, store))}")
    ref = told or find_fresh(stage, work.spec, work.inputs, store)  # on machines after the first, another published it
    if ref is None:
        raise ChildError(f"the child of stage {stage.name}", 0, "it ended well and published nothing")
    report.log(ref.uri)
    return ref


def child_job(work: Work, site: Site) -> Job:
    """Return what a child is asked to do for a stage."""
    return Job(
        stage=work.stage.name,
        spec=work.spec.model_dump(mode="json"),
        inputs=work.stage.used(work.inputs),
        root=site.root,
        placement=work.placement,
        ray=site.fan_out.address or "auto" if site.fan_out.runner == "ray" else None,
    )


def job_path(site: Site, name: str) -> Path:
    """Return where a job and what it prints lie while it runs, without suffix; the folder is there."""
    folder = site.placement.scratch / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


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
def _engines(work: Work, site: Site, path: Path) -> Iterator[Placement]:
    """Yield the placement with engines: those given, or our own for as long as the block runs."""
    placement, folder = work.placement, path.with_name(f"{path.name}-engines")
    if not work.spec.engine_tokens:
        yield placement
    elif work.stage.needs == "pair":
        settings = ServingSettings(slots=work.spec.engine_slots, tokens=work.spec.engine_tokens)
        with serving_draft(work.opened(), placement, site.gguf, folder, work.report, settings) as serving:
            yield serving
    elif (states := cast("Options | None", work.spec.engine_states)) is not None and not placement.endpoints:
        answers = work.spec.engine_tokens if work.stage.needs == "target" else 0
        with _states_engines(states, answers, site, folder) as endpoints:
            yield placement.model_copy(update={"endpoints": endpoints})
    elif work.stage.needs == "target" and not placement.endpoints:
        context = work.spec.engine_tokens + PROMPT_ROOM
        served = Served(name="target", gguf=site.gguf, folder=site.folder, context=context, threads=placement.threads)
        with start_engines(site.engines, served, folder) as endpoints:
            yield placement.model_copy(update={"endpoints": endpoints})
    else:
        yield placement


@contextmanager
def _states_engines(spec: Options, answers: int, site: Site, folder: Path) -> Iterator[tuple[Endpoint, ...]]:
    """Yield engines of our own that give states, with answers of so many tokens where there are some."""
    if site.folder is None:
        raise EngineError("no engine can be started for a target that is not on this machine; give --endpoint URL")
    staging = staging_folder(site.placement.scratch)
    server = StatesServer(options=spec, folder=site.folder, staging=staging, answers=answers)
    engines, served = managed(site.engines, server)
    with start_engines(engines, replace(served, threads=site.placement.threads), folder) as endpoints:
        yield endpoints
    with suppress(OSError):  # others of this user still have files there
        staging.rmdir()


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
        return [sys.executable, "-m", "infra.children.ray_ranks", str(job_file), job.ray]
    if several:
        return [
            sys.executable,
            "-m",
            "infra.children.ranks",
            str(job_file),
            str(job_file.with_name(f"{job_file.stem}-ranks")),
        ]
    return [sys.executable, "-m", "infra.children.child", str(job_file)]
