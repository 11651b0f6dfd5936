"""The whole pipeline as one flow: `build_draft`."""

from typing import Literal

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.chain import StageRun, chain_of
from flows.choices import Choices
from infra.site import Site
from tasks.cancel import cancel_with_parent


class Built(BaseModel):
    """What a run gave: one step a stage, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[StageRun, ...]


@flow(
    name="build-draft",
    flow_run_name="{choices.label}",
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def build_draft(choices: Choices, site: Site) -> Built:
    """Train, measure, export and release a draft model for one target."""
    chain = chain_of(choices, site)
    draft = chain.draft()
    exports = chain.run("export", draft)
    scores = chain.run("evaluate", draft)
    speed = chain.run("benchmark", draft, exports, scores)
    chain.run("release", draft, exports, scores, speed)
    return Built(steps=tuple(chain.steps))


@flow(
    name="try-draft",
    flow_run_name="{choices.label}",
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def try_draft(choices: Choices, site: Site, last: Literal["train", "evaluate", "benchmark"] = "evaluate") -> Built:
    """Train a draft, measure it, time its rounds, and stop there: a row of a sweep."""
    chain = chain_of(choices, site)
    draft = chain.draft()
    if last != "train":
        scores = chain.run("evaluate", draft)
    if last == "benchmark":
        chain.run("benchmark", draft, chain.run("export", draft), scores)
    return Built(steps=tuple(chain.steps))
