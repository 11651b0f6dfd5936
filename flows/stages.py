"""One flow per stage: it takes the published inputs and makes that stage's artifact, fresh or again."""

from prefect import flow

from flows.chain import StageRun, chain_of
from flows.choices import Choices
from infra.site import Site
from tasks.cancel import cancel_with_parent

RUN_NAME = "{choices.label}"


@flow(name="prepare", flow_run_name=RUN_NAME, persist_result=False)
def prepare(choices: Choices, site: Site) -> StageRun:
    """Publish the prompts."""
    return _only("prepare", choices, site)


@flow(name="regenerate", flow_run_name=RUN_NAME, persist_result=False)
def regenerate(choices: Choices, site: Site) -> StageRun:
    """Publish the target's answers to the published prompts."""
    return _only("regenerate", choices, site)


@flow(
    name="cache",
    flow_run_name=RUN_NAME,
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def cache(choices: Choices, site: Site) -> StageRun:
    """Publish the target's hidden states over the published answers."""
    return _only("cache", choices, site)


@flow(name="train", flow_run_name=RUN_NAME, persist_result=False)
def train(choices: Choices, site: Site) -> StageRun:
    """Publish a draft fitted to the published cache."""
    return _only("train", choices, site)


@flow(name="export", flow_run_name=RUN_NAME, persist_result=False)
def export(choices: Choices, site: Site) -> StageRun:
    """Publish the published draft in the forms of the engines."""
    return _only("export", choices, site)


@flow(
    name="evaluate",
    flow_run_name=RUN_NAME,
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def evaluate(choices: Choices, site: Site) -> StageRun:
    """Publish the scores of the published draft."""
    return _only("evaluate", choices, site)


@flow(name="benchmark", flow_run_name=RUN_NAME, persist_result=False)
def benchmark(choices: Choices, site: Site) -> StageRun:
    """Publish the speed of the published draft on this machine."""
    return _only("benchmark", choices, site)


@flow(name="release", flow_run_name=RUN_NAME, persist_result=False)
def release(choices: Choices, site: Site) -> StageRun:
    """Publish the release of the published draft."""
    return _only("release", choices, site)


STAGE_FLOWS = {
    "prepare": prepare,
    "regenerate": regenerate,
    "cache": cache,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "release": release,
}
"""Stage name -> its flow."""


def _only(name: str, choices: Choices, site: Site) -> StageRun:
    return chain_of(choices, site, name).only(name)
