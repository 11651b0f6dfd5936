"""The first task of every flow: find the target and the sources, and say what the run will cost."""

import json
from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from deepspec.catalog import scores_before
from deepspec.plan.budget import check_limits, plan_rows
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import Resolved, resolve
from deepspec.release.spec import ReleaseSpec
from deepspec.store import Store
from infra.listeners import terminal
from infra.targets import ready_target
from infra.work import Site
from tasks.report import PrefectReport


@task(name="plan", task_run_name="plan", tags=["deepspec"], cache_policy=NO_CACHE, persist_result=False)
def resolve_plan(plan: Plan, site: Site) -> tuple[Resolved, Site]:
    """Return the specs of all stages, and the site that knows where everything lies.

    Raises:
        InputError: a source or the target is not there, or the plan does not fit the store or its limits.
    """
    for report in terminal("plan"):
        report.log(f"target {plan.target.name}")
    resolved = resolved_here(plan, site)
    store = Store(site.root)
    check_limits(plan, store, resolved.sizes)
    note_target(resolved, site)
    PrefectReport("plan").table("estimate", plan_rows(plan, store, resolved.sizes))
    return with_previous(resolved, store), site.at(resolved)


def resolved_here(plan: Plan, site: Site) -> Resolved:
    """Return a plan with the places that everything in it has on this machine; the target is made ready."""
    files = ready_target(plan.target, plan.target.name)
    return resolve(plan, files, site.placement.scratch / "hashes.json")


def located(site: Site, plan: Plan | None) -> Site:
    """Return a site that may have been resolved on another machine with the places of this one."""
    if plan is None or site.folder is None or site.folder.is_dir():
        return site
    return site.at(resolved_here(plan, site))


def with_previous(resolved: Resolved, store: Store) -> Resolved:
    """Return the plan with its release compared with the one that `baseline` names."""
    release = ReleaseSpec.model_validate(resolved.specs["release"])
    release = release.but(previous=scores_before(store, release.target))
    return replace(resolved, specs={**resolved.specs, "release": release})


def note_target(resolved: Resolved, site: Site) -> None:
    """Note where the target lies, for tools that check its artifacts later."""
    digest = next(digest for digest, where in resolved.locations.items() if where == str(resolved.files.folder))
    noted = site.placement.scratch / "targets" / digest
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(str(resolved.files.folder)))
