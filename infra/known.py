"""What is known of a run on this machine: plan and site, as the checks of `deepspec.plan.checks` look at them."""

from deepspec.benchmark.spec import hardware_fingerprint
from deepspec.plan.known import Known
from deepspec.plan.machine import settled as settled_placement
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import Resolved
from deepspec.store import Store
from infra.children import devices
from infra.settings import models_dir, nodes
from infra.site import Site


def settled(site: Site) -> tuple[Site, str]:
    """Return a site whose device is one that this machine has, and what `auto` has become; empty where it was named."""
    if site.placement.device != "auto" or site.fan_out.runner != "threads":
        return site, ""
    placement, told = settled_placement(site.placement, devices.machine())
    return site.model_copy(update={"placement": placement}), told


def hardware_of(site: Site) -> str:
    """Return the fingerprint of what a benchmark's times are measured on: this machine, and what of it is used."""
    device, threads = site.placement.device, site.placement.threads
    looks = device != "cpu" and site.fan_out.runner == "threads"
    return hardware_fingerprint(device, threads, [card.name for card in devices.machine().cards] if looks else [])


def known(plan: Plan, site: Site, resolved: Resolved | None = None, only: str | None = None) -> Known:
    """Return what the checks look at.

    Args:
        plan: what is asked for.
        site: where it runs.
        resolved: what became of the plan, once its target is ready and hashed.
        only: what alone is made, a stage or `reevaluate`; default: all of a run.
    """
    return Known(
        plan=plan,
        placement=site.placement,
        store=Store(site.root),
        models=models_dir(),
        machine=devices.machine if site.fan_out.runner == "threads" else None,
        ready=None if resolved is None else resolved.files,
        identity=None if resolved is None else resolved.target,
        nodes=nodes().count,
        only=only,
    )
