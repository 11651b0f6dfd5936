"""What all stage tasks do: run the stage in a guarded child, and tell Prefect and the terminal about it."""

from contextlib import AbstractContextManager, nullcontext

from prefect.concurrency.sync import concurrency

from deepspec.artifacts import ArtifactRef, Spec
from deepspec.stages import stage_named
from infra.children.stage import run_stage
from infra.listeners import Listeners, terminal
from infra.site import Site
from tasks.keys import keys_of
from tasks.report import PrefectReport

Refs = dict[str, ArtifactRef]
"""Kind -> reference of an input."""

LEASE_SECONDS = 60
"""How long a slot is kept for a run whose machine is gone."""


def perform(name: str, spec: Spec, inputs: Refs, site: Site) -> ArtifactRef:
    """Return the stage's artifact, made in a child process unless a fresh one is published.

    What the stage logs goes to the terminal and to the server; of a fresh artifact nothing is said.
    """
    stage, server = stage_named(name), PrefectReport(name)
    report = Listeners([server, *terminal(name)])
    try:
        with slot(site.limit):
            return run_stage(site.work(stage, spec, inputs, report), site, keys_of(site))
    finally:
        server.end()


def slot(limit: str | None) -> AbstractContextManager[None]:
    """Return a block that holds a slot of a global concurrency limit; a limit that is not there is an error."""
    if limit is None:
        return nullcontext()
    return concurrency(limit, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False)
