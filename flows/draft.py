"""The whole pipeline as one flow: `build_draft`."""

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.chain import Chain, Step
from flows.choices import Choices
from infra.work import Site
from tasks.resolve import resolve_plan


class Built(BaseModel):
    """What a run gave: one step a stage, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Step, ...]


@flow(name="build-draft", flow_run_name="{choices.target}-{choices.algorithm}", persist_result=False)
def build_draft(choices: Choices, site: Site) -> Built:
    """Train, measure, export and release a draft model for one target."""
    plan = choices.plan()
    resolved, site = resolve_plan(plan, site)
    chain = Chain(resolved.specs, site, plan.dataset.cache)
    draft = chain.run("train", chain.cache())
    exports = chain.run("export", draft)
    scores = chain.run("evaluate", draft)
    speed = chain.run("benchmark", draft, exports, scores)
    chain.run("release", draft, exports, scores, speed)
    return Built(steps=tuple(chain.steps))
