"""How every stage task is cached and retried: the artifact's address is the key, and only what can pass is retried."""

from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from deepspec.disk import is_full
from deepspec.errors import DeepSpecError
from deepspec.stages import address, stage_named

RETRIES = 2
BACKOFF_SECONDS = 10


@dataclass
class ArtifactAddress(CachePolicy):
    """The cache key of a stage task: `stages/<stage>/<artifact address>`.

    Prefect's record of a result can outlive the artifact; flows therefore refresh it where the store says so.
    """

    stage: str = ""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        """Return the key for the parameters `spec` and `inputs` of a stage task."""
        del task_ctx, flow_parameters, kwargs
        stage = stage_named(self.stage)
        given = {name: ref.address for name, ref in inputs["inputs"].items()}
        return f"stages/{stage.name}/{address(stage, inputs['spec'], given)}"


async def can_pass(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Return whether the error of a failed task may be gone the next time."""
    del task, task_run
    error: object = await state.aresult(raise_on_failure=False)
    return error.retryable if isinstance(error, DeepSpecError) else isinstance(error, OSError) and not is_full(error)


RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=BACKOFF_SECONDS),
    "retry_condition_fn": can_pass,
}
"""Options of every task: what can pass is tried again, what a user has to mend is told at once."""


def stage_options(stage: str, name: str | None = None) -> dict[str, Any]:
    """Return the options that all stage tasks share.

    Args:
        stage: its name.
        name: of the task; None: that of the stage.
    """
    return {
        "name": name or stage,
        "task_run_name": name or stage,
        "tags": ["deepspec", stage],
        "cache_policy": ArtifactAddress(stage=stage),
        "persist_result": True,
        "result_serializer": "json",
        **RETRIED,
    }
