"""A run that crashed is scheduled again, a bounded number of times; started by an automation."""

from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry
from prefect.variables import Variable

CRASH_RETRIES = "deepspec_crash_retries"
"""Variable: how often a run may be started again after a crash."""


@flow(name="recover", flow_run_name="recover-{flow_run_id}", persist_result=False)
def recover(flow_run_id: UUID) -> bool:
    """Schedule a crashed run of a deployment again; return whether that was done."""
    most = int(str(Variable.get(CRASH_RETRIES)))
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        crashed = run.state is not None and run.state.is_crashed()
        crashes = sum(state.is_crashed() for state in client.read_flow_run_states(flow_run_id))
        again = crashed and run.deployment_id is not None and crashes <= most
        if again:
            client.set_flow_run_state(flow_run_id, AwaitingRetry())
    found = "crashed" if crashed else "not crashed any more"
    get_run_logger().info(f"{run.name}: {found}, crashes so far {crashes}; {'again' if again else 'left alone'}")
    return again
