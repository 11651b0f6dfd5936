"""Shards that run as runs of a deployment end with the run that started them."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending, Running

from deepspec.specs import Spec
from deepspec.stages import STAGES
from flows.draft import build_draft, try_draft
from flows.reevaluate import reevaluate
from flows.stages import STAGE_FLOWS
from flows.sweep import sweep
from infra.site import FanOut, Site
from tasks import shards
from tasks.cancel import cancel_runs_below, cancel_with_parent

pytestmark = pytest.mark.slow


@pytest.fixture
def client(api: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def deployment(client: SyncPrefectClient) -> str:
    """A deployment that no worker serves."""
    name = uuid4().hex
    client.create_deployment(client.create_flow_from_name("shard"), name)
    return f"shard/{name}"


@task
def nothing() -> None:
    """Stand for a run in the run above it."""


@flow
def parent() -> None:
    """Start runs."""


def started(client: SyncPrefectClient, above: UUID, deployment: str | None) -> FlowRun:
    """Return a new run below another, of a deployment or within the same process."""
    stand_in = client.create_task_run(nothing, flow_run_id=above, dynamic_key=uuid4().hex, state=Pending())
    if deployment is None:
        return client.create_flow_run(parent, parent_task_run_id=stand_in.id, state=Running())
    found = client.read_deployment_by_name(deployment)
    return client.create_flow_run_from_deployment(found.id, parent_task_run_id=stand_in.id)


def state_of(client: SyncPrefectClient, run: FlowRun) -> StateType | None:
    return client.read_flow_run(run.id).state_type


def test_what_a_run_started_and_is_not_over_is_cancelled(client: SyncPrefectClient, deployment: str) -> None:
    above = client.create_flow_run(parent, state=Running())
    waiting, working, done = (started(client, above.id, deployment) for _ in range(3))
    within = started(client, above.id, None)
    below = started(client, within.id, deployment)
    other = started(client, client.create_flow_run(parent).id, deployment)
    client.update_flow_run(working.id, infrastructure_pid="worker:1")
    client.set_flow_run_state(working.id, Running(), force=True)
    client.set_flow_run_state(done.id, Completed(), force=True)
    assert set(cancel_runs_below(above.id)) == {waiting.id, working.id, below.id}
    assert state_of(client, waiting) == state_of(client, below) == StateType.CANCELLED  # nobody had begun
    assert state_of(client, working) == StateType.CANCELLING  # its worker ends it
    assert state_of(client, done) == StateType.COMPLETED
    assert state_of(client, within) == StateType.RUNNING  # ends with its process
    assert state_of(client, other) == StateType.SCHEDULED


def test_shards_end_where_their_run_is_stopped(
    client: SyncPrefectClient, deployment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three shards are started, the third waits for a thread; nobody works on them; then Ctrl-C."""

    def below() -> list[FlowRun]:
        found = client.read_flow_runs()
        return [run for run in found if run.deployment_id == client.read_deployment_by_name(deployment).id]

    def interrupted(futures: object) -> None:
        while len(below()) < 2:
            continue
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "count_shards", lambda *_: 3)
    monkeypatch.setattr(shards, "wait", interrupted)

    @flow
    def fan_out() -> None:
        site = Site(fan_out=FanOut(workers=2, runner="deployment", address=deployment))
        shards.make_shards("cache-greedy", Spec(), {}, site)

    with pytest.raises(KeyboardInterrupt):
        fan_out()
    assert [run.state_type for run in below()] == [StateType.CANCELLED] * 2
    assert {run.name for run in below()} <= {f"cache-greedy-{shard}" for shard in range(3)}


def test_every_flow_that_shares_out_shards_ends_them_when_it_is_cancelled_or_crashes() -> None:
    for each in (build_draft, try_draft, reevaluate, sweep, STAGE_FLOWS["cache"], STAGE_FLOWS["evaluate"]):
        assert each.on_cancellation_hooks == each.on_crashed_hooks == [cancel_with_parent]
    sharded = {name for name, stage in STAGES.items() if stage.sharded}
    assert sharded == {"cache", "evaluate"}
