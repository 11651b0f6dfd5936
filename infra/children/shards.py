"""Counting and making the shards of a stage, each in a child process of its own."""

from deepspec.errors import ChildError
from deepspec.report import Report
from deepspec.stages import Work
from deepspec.store import Store
from infra.children.child import Job
from infra.children.events import Events
from infra.children.stage import child_job, job_path, keep_logs, run_job
from infra.site import Site


def count_shards(work: Work, site: Site) -> int:
    """Return how many shards a stage has."""
    job = child_job(work, site).model_copy(update={"do": "count"})
    events = _run(job, site, work.report, "count")
    if events.shards is None:
        raise ChildError(f"counting the shards of {work.stage.name}", 0, "it told no number")
    return events.shards


def run_shard(work: Work, shard: int, site: Site) -> None:
    """Make one shard and commit its parts.

    Raises:
        DeepSpecError: the error that the child raised, or ChildError where it died without one.
    """
    job = child_job(work, site)
    _run(job.model_copy(update={"do": "shard", "shard": shard}), site, work.report, f"shard-{shard:05d}")


def _run(job: Job, site: Site, report: Report, what: str) -> Events:
    store = Store(site.root)
    path = job_path(site, f"{job.stage}-{what}")
    try:
        return run_job(job, path, report, stop=lambda: site.caps.reached_now(store))
    finally:
        keep_logs(path, store)
