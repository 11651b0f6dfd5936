"""The newest runs of a server, as rows for people."""

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, FlowRunFilterExpectedStartTime, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import temporary_settings

from infra.server.setup import client_settings


def newest_runs(api: str, tags: list[str], limit: int) -> list[tuple[str, ...]]:
    """Return name, flow, state, start, time taken, tags and id of runs that have all the tags, the newest first.

    Runs that a schedule has in store for later are left out.
    """
    wanted = FlowRunFilter(
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
        tags=FlowRunFilterTags(all_=tags) if tags else None,
    )
    with temporary_settings(client_settings(api)), get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=limit)
        flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=FlowFilter())}
    return [(run.name, flows.get(run.flow_id, ""), *_told(run)) for run in found]


def _told(run: FlowRun) -> tuple[str, ...]:
    started = f"{run.start_time:%Y-%m-%d %H:%M}" if run.start_time else f"due {run.expected_start_time:%m-%d %H:%M}"
    took = timedelta(seconds=round(run.total_run_time.total_seconds()))
    return (run.state_name or "", started, str(took), " ".join(sorted(run.tags)), str(run.id))
