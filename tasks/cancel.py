"""Runs that a run has started as deployments end with it: nothing computes for a run that is over."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType

PAGE = 200
"""Runs that the server tells at a time."""


def cancel_runs_below(flow_run_id: UUID) -> list[UUID]:
    """Ask the workers of all runs of deployments below a run to end them; return which were not over.

    A run that has not begun is over at once. Flows that run within the process of the given one end with it.
    """
    with get_client(sync_client=True) as client:
        going_on = [run.id for run in _runs_of_deployments(client, flow_run_id) if not _is_over(run)]
        for each in going_on:
            client.set_flow_run_state(each, State(type=StateType.CANCELLING))
    return going_on


def cancel_with_parent(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel what a run has started; a hook for flows that are cancelled or crash."""
    del flow, state
    cancel_runs_below(flow_run.id)


def _runs_of_deployments(client: SyncPrefectClient, parent: UUID) -> Iterator[FlowRun]:
    below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
    offset = 0
    while runs := client.read_flow_runs(flow_run_filter=below, limit=PAGE, offset=offset):
        offset += len(runs)
        for run in runs:
            if run.deployment_id is None:
                yield from _runs_of_deployments(client, run.id)
            else:
                yield run


def _is_over(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
