"""One shard of a stage as a run of its own: what `site.fan_out` with the runner `deployment` starts."""

from typing import Any

from prefect import flow

from deepspec.artifacts import ArtifactRef
from deepspec.plan.plan import Plan
from infra.site import Site
from tasks.shards import make_shard


@flow(name="shard", flow_run_name="{name}-{shard}", persist_result=False)
def make_one_shard(
    name: str,
    shard: int,
    spec: dict[str, Any],
    inputs: dict[str, ArtifactRef],
    site: Site,
    plan: Plan | None = None,
) -> None:
    """Make one shard of a stage and commit its parts to the store."""
    make_shard(name, shard, spec, inputs, site, plan)
