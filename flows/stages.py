"""One flow per stage: it takes the published inputs and makes that stage's artifact, fresh or again."""

from prefect import flow

from deepspec.plan.plan import Plan
from deepspec.stages import stage_named
from flows.chain import Chain, Step
from infra.work import Site
from tasks.resolve import resolve_plan


@flow(name="prepare", persist_result=False)
def prepare(plan: Plan, site: Site) -> Step:
    """Publish the prompts."""
    return _only("prepare", plan, site)


@flow(name="regenerate", persist_result=False)
def regenerate(plan: Plan, site: Site) -> Step:
    """Publish the target's answers to the published prompts."""
    return _only("regenerate", plan, site)


@flow(name="cache", persist_result=False)
def cache(plan: Plan, site: Site) -> Step:
    """Publish the target's hidden states over the published answers."""
    return _only("cache", plan, site)


@flow(name="train", persist_result=False)
def train(plan: Plan, site: Site) -> Step:
    """Publish a draft fitted to the published cache."""
    return _only("train", plan, site)


@flow(name="export", persist_result=False)
def export(plan: Plan, site: Site) -> Step:
    """Publish the published draft in the forms of the engines."""
    return _only("export", plan, site)


@flow(name="evaluate", persist_result=False)
def evaluate(plan: Plan, site: Site) -> Step:
    """Publish the scores of the published draft."""
    return _only("evaluate", plan, site)


@flow(name="benchmark", persist_result=False)
def benchmark(plan: Plan, site: Site) -> Step:
    """Publish the speed of the published draft on this machine."""
    return _only("benchmark", plan, site)


@flow(name="release", persist_result=False)
def release(plan: Plan, site: Site) -> Step:
    """Publish the release of the published draft."""
    return _only("release", plan, site)


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


def _only(name: str, plan: Plan, site: Site) -> Step:
    resolved, site = resolve_plan(plan, site)
    chain = Chain(resolved.specs, site)
    chain.run(name, *chain.inputs(stage_named(name)))
    return chain.steps[-1]
