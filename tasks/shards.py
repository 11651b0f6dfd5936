"""One Prefect task per shard of a stage, mapped over workers: threads here, a Ray cluster, or runs of a deployment.

A shard is made in a guarded child like a stage. What it commits is in the store, so a shard that is lost with its
machine is made again, and shards that are done cost a look. Nothing here decides what is correct: the stage's own task
runs after all shards and makes what is still missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.deployments import run_deployment
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from deepspec.errors import CancelledError, ChildError
from deepspec.plan.plan import Plan
from deepspec.specs import Spec
from deepspec.stages import PRODUCTS, stage_named
from infra.children.shards import count_shards, run_shard
from infra.site import FanOut, Site
from tasks.cancel import cancel_runs_below
from tasks.perform import Refs, slot
from tasks.policy import can_pass
from tasks.report import PrefectReport
from tasks.resolve import located

LOST_MACHINES = 3
"""How often Ray gives a shard to another machine."""

_STOPPED: set[UUID] = set()
"""Flow runs of this process that were stopped: no thread of theirs begins another shard."""


@task(
    name="shard",
    task_run_name="{name}-{shard}",
    tags=["deepspec", "shard"],
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=can_pass,
)
def make_shard(name: str, shard: int, spec: dict[str, Any], inputs: Refs, site: Site, plan: Plan | None = None) -> None:
    """Make one shard of a stage: in a child here, or as a run of the deployment that the site names.

    Args:
        name: of what is made, a key of `PRODUCTS`: runs that are shown beside each other have names of their own.
        shard: which one.
        spec: what changes the result.
        inputs: kind -> reference.
        site: where to run.
        plan: by it another machine finds target and benchmarks in its own places.
    """
    if site.fan_out.runner == "deployment":
        if _stopped():
            raise CancelledError(f"shard {shard} of {name} was not begun: its run was asked to stop")
        here = site.model_copy(update={"fan_out": FanOut()})
        parameters = {"name": name, "shard": shard, "spec": spec, "inputs": inputs, "site": here, "plan": plan}
        told = run_deployment(site.fan_out.address or "", parameters=parameters, flow_run_name=f"{name}-{shard}")
        state: State[Any] | None = told.state  # type: ignore[union-attr]  # no event loop here
        if state is None or not state.is_completed():
            raise ChildError(f"{site.fan_out.address}: shard {shard} of {name}", 1, str(state))
        return
    stage, report = stage_named(PRODUCTS[name].stage), PrefectReport(f"{name}-{shard}")
    try:
        here = located(site, plan)
        with slot(site.limit):
            run_shard(here.work(stage, stage.spec.model_validate(spec), inputs, report), shard, here)
    finally:
        report.end()


def _stopped() -> bool:
    context = TaskRunContext.get()
    return context is not None and context.task_run.flow_run_id in _STOPPED


def make_shards(name: str, spec: Spec, inputs: Refs, site: Site, plan: Plan | None = None) -> None:
    """Make every shard of what is named, a key of `PRODUCTS`, at most `site.fan_out.workers` at a time.

    Runs of a deployment end with this one, when it is stopped or fails.

    Raises:
        Exception: that of the first shard that failed for good, once none is running any more.
    """
    total = count_shards(site.work(stage_named(PRODUCTS[name].stage), spec, inputs, PrefectReport(name)), site)
    given = {"name": name, "spec": spec.model_dump(mode="json"), "inputs": inputs, "site": site, "plan": plan}
    with _runner(site) as runner, _ended_with(site):
        futures = [runner.submit(make_shard, parameters={**given, "shard": shard}) for shard in range(total)]
        wait(futures)
        for future in futures:
            future.result()


@contextmanager
def _ended_with(site: Site) -> Iterator[None]:
    """Cancel runs of a deployment that the block leaves behind; the threads that wait for them end then, too."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None and site.fan_out.runner == "deployment" else None
    if run is None:
        yield
        return
    _STOPPED.discard(run.id)
    try:
        yield
    except BaseException:  # Ctrl-C and TERM, too
        _STOPPED.add(run.id)
        with suppress(HTTPError):  # without the server nobody can be told, and the reason to stop is the other one
            cancel_runs_below(run.id)
        raise


@contextmanager
def _runner(site: Site) -> Iterator[TaskRunner[Any]]:
    """Yield where the tasks run."""
    if site.fan_out.runner != "ray":
        threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=site.fan_out.workers)
        with threads:
            yield threads
        return
    from prefect_ray import RayTaskRunner  # the extra `ray`
    from prefect_ray.context import remote_options

    on_gpu, threads_each = int(site.placement.device == "cuda"), site.placement.threads or 1
    cluster: TaskRunner[Any] = RayTaskRunner(address=site.fan_out.address or "auto")
    with remote_options(num_cpus=threads_each, num_gpus=on_gpu, max_retries=LOST_MACHINES), cluster:
        yield cluster
