"""The cache key of a stage task is the artifact's address, and only what can pass is retried."""

import asyncio
import errno
from typing import Any, cast

import pytest
from prefect.context import TaskRunContext
from prefect.states import Failed

from deepspec.artifacts import ArtifactRef
from deepspec.errors import ChildError, EngineError, StoreError, rebuilt
from deepspec.stages import PRODUCTS, STAGES, address
from deepspec.train.spec import TrainSpec
from tasks.policy import ArtifactAddress, can_pass
from tasks.resolve import resolve_plan
from tasks.stages import STAGE_TASKS

CACHE = ArtifactRef(kind="target_cache", address="c" * 32, content="1", uri="here")
NO_RUN = cast(TaskRunContext, None)
"""The policy asks nothing of the run."""


def key(spec: TrainSpec, ref: ArtifactRef) -> str:
    policy = ArtifactAddress(stage="train")
    return policy.compute_key(NO_RUN, {"spec": spec, "inputs": {"target_cache": ref}, "site": object()}, {})


def test_the_key_is_the_address() -> None:
    assert (
        key(TrainSpec(), CACHE) == f"stages/train/{address(STAGES['train'], TrainSpec(), {'target_cache': 'c' * 32})}"
    )


def test_the_key_follows_spec_and_inputs_and_nothing_else() -> None:
    assert key(TrainSpec(), CACHE) == key(TrainSpec(), CACHE.model_copy(update={"content": "2", "uri": "there"}))
    assert key(TrainSpec(), CACHE) != key(TrainSpec(learning_rate=1e-3), CACHE)
    assert key(TrainSpec(), CACHE) != key(TrainSpec(), CACHE.model_copy(update={"address": "d" * 32}))


def test_the_key_knows_an_input_that_not_every_run_has() -> None:
    policy, greedy = ArtifactAddress(stage="train"), CACHE.model_copy(update={"address": "e" * 32})
    given = {"target_cache": CACHE, "greedy_cache": greedy}
    with_it = policy.compute_key(NO_RUN, {"spec": TrainSpec(), "inputs": given}, {})
    inputs = {name: ref.address for name, ref in given.items()}
    assert with_it == f"stages/train/{address(STAGES['train'], TrainSpec(), inputs)}" != key(TrainSpec(), CACHE)


def test_everything_that_a_run_makes_has_a_task_of_its_name() -> None:
    assert {name: task.name for name, task in STAGE_TASKS.items()} == {name: name for name in PRODUCTS}


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (StoreError("reset"), True),
        (ConnectionResetError("reset"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (rebuilt("FullDiskError", "cannot write to /data: No space left on device"), False),
        (ChildError("python", 137, "killed"), True),
        (ChildError("python", 1, "a bug"), False),
        (EngineError("serves another model"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_only_errors_that_can_pass_are_retried(error: Any, passes: bool) -> None:
    assert asyncio.run(can_pass(None, None, Failed(data=error))) is passes


@pytest.mark.parametrize("task", [resolve_plan, *STAGE_TASKS.values()])
def test_every_task_of_a_run_tries_again_what_can_pass(task: Any) -> None:
    assert (task.retries, task.retry_condition_fn) == (2, can_pass)
