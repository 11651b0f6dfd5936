"""Counting and making the shards of a stage, each in a child process of its own."""

from datetime import UTC, datetime
from pathlib import Path

from deepspec.artifacts import ArtifactRef, Spec
from deepspec.errors import ChildError
from deepspec.report import Report
from deepspec.stages import Stage
from deepspec.store import Store
from infra.children.child import Job
from infra.children.events import Events
from infra.children.stage import child_job, keep_logs, run_job
from infra.site import Site


def count_shards(stage: Stage, spec: Spec, inputs: dict[str, ArtifactRef], site: Site, report: Report) -> int:
    """Return how many shards a stage has."""
    job = child_job(stage, spec, inputs, site).model_copy(update={"do": "count"})
    events = _run(job, site, report, "count")
    if events.shards is None:
        raise ChildError(f"counting the shards of {stage.name}", 0, "it told no number")
    return events.shards


def run_shard(stage: Stage, shard: int, spec: Spec, inputs: dict[str, ArtifactRef], site: Site, report: Report) -> None:
    """Make one shard and commit its parts.

    Raises:
        DeepSpecError: the error that the child raised, or ChildError where it died without one.
    """
    job = child_job(stage, spec, inputs, site)
    _run(job.model_copy(update={"do": "shard", "shard": shard}), site, report, f"shard-{shard:05d}")


def _run(job: Job, site: Site, report: Report, what: str) -> Events:
    store = Store(site.root)
    path = _path(site, f"{job.stage}-{what}")
    try:
        return run_job(job, path, report, stop=lambda: site.caps.reached_now(store))
    finally:
        keep_logs(path, store)


def _path(site: Site, name: str) -> Path:
    folder = site.placement.scratch / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
