"""A released draft measured anew against its target as it is now: meant for a schedule."""

from datetime import UTC, datetime

from prefect import flow, runtime

from deepspec.catalog import find
from deepspec.evaluate.again import evaluated_again, scores_of
from deepspec.store import Store
from flows.chain import Chain, StageRun, begin
from flows.choices import Choices
from infra.site import Site
from tasks.alert import announce
from tasks.cancel import cancel_with_parent


@flow(
    name="reevaluate",
    flow_run_name="reevaluate-{release}",
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def reevaluate(choices: Choices, site: Site, release: str = "baseline", as_of: datetime | None = None) -> StageRun:
    """Publish scores of a release against today's target, and emit `deepspec.eval.regressed` where they are worse.

    Args:
        choices: the target, resolved anew, and where benchmarks lie.
        site: where to run.
        release: a release, or scores: a ref, `kind/address`, or the start of an address.
        as_of: moment that the scores speak of; default: when the run was scheduled, so that a retry goes on with it.
    """
    store = Store(site.root)
    released = find(store, release)
    plan = choices.but(algorithm=scores_of(store, released).counts["algorithm"]).plan
    resolved, site = begin(plan, site, "reevaluate")
    moment = as_of or runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    spec, draft = evaluated_again(store, released, resolved.target, moment)
    chain = Chain({"evaluate": spec}, site, plan=plan)
    announce(chain.run("evaluate", draft), site)
    return chain.steps[-1]
