"""The first task of every flow: find the target and the sources, and say what the run will cost."""

import json
from dataclasses import dataclass, replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from deepspec.catalog import held_bytes, scores_before
from deepspec.plan.budget import check_limits, plan_rows
from deepspec.plan.checks import examine
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import Resolved, resolve
from deepspec.release.spec import ReleaseSpec
from deepspec.store import Store
from infra.children.targets import ready_target
from infra.engines.states import engine_version
from infra.known import hardware_of, known, settled
from infra.listeners import Listeners, terminal
from infra.site import Site
from tasks.policy import RETRIED
from tasks.report import PrefectReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A run that can begin."""

    resolved: Resolved
    site: Site
    """With a device that there is, and the places of everything."""
    told: tuple[str, ...]
    """Lines for the user."""


def begun(plan: Plan, site: Site, only: str | None = None) -> Begun:
    """Return a plan with the specs of all stages, once everything that can be known says that it can be run.

    What the files say is looked at before anything is hashed, and again once a target has been fetched or converted.

    Raises:
        DeepSpecError: a source or the target is not there or damaged, the plan asks for what cannot be, or it does
            not fit the store or its limits.
    """
    site, device = settled(site)
    examine(known(plan, site, only=only))
    resolved = resolved_here(plan, site)
    told = examine(known(plan, site, resolved, only))
    store = Store(site.root)
    check_limits(plan, store, resolved.sizes, held=held_bytes(store, resolved.specs))
    return Begun(resolved=resolved, site=site.at(resolved), told=(*([device] if device else []), *told))


@task(name="plan", task_run_name="plan", tags=["deepspec"], cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def resolve_plan(plan: Plan, site: Site, only: str | None = None) -> tuple[Resolved, Site]:
    """Return the specs of all stages, and the site that knows where everything lies.

    Raises:
        DeepSpecError: see `begun`.
    """
    report = Listeners([PrefectReport("plan"), *terminal("plan")])
    report.log(f"target {plan.target.name}")
    run = begun(plan, site, only)
    for line in run.told:
        report.log(line)
    store = Store(site.root)
    note_target(run.resolved, run.site)
    report.table("estimate", plan_rows(plan, store, run.resolved.sizes))
    return with_previous(run.resolved, store), run.site


def resolved_here(plan: Plan, site: Site) -> Resolved:
    """Return a plan with the places that everything in it has on this machine; the target is made ready."""
    files = ready_target(plan.target, plan.target.name)
    return resolve(versioned(plan, site), files, site.placement.scratch / "hashes.json", hardware_of(site))


def versioned(plan: Plan, site: Site) -> Plan:
    """Return a plan that says of which engine the states of its cache, or of training, are, where they are of one.

    Raises:
        EngineError: no engine says which version it is.
    """
    urls = [endpoint.url for endpoint in site.placement.endpoints]
    if plan.train.source == "engine" and plan.draft is None and urls:
        version = plan.train.engine_version or engine_version(urls)
        return plan.but(train=plan.train.but(engine_version=version))
    asks = plan.cache.states != "transformers" and plan.dataset.cache is None
    if not asks or plan.cache.engine_version is not None:
        return plan
    return plan.but(cache=plan.cache.but(engine_version=engine_version(urls)))


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
