"""What all stage tasks do: run the stage in a guarded child, and tell Prefect and the terminal about it."""

from contextlib import AbstractContextManager, nullcontext

from prefect.concurrency.sync import concurrency

from deepspec.artifacts import ArtifactRef
from deepspec.specs import Spec
from deepspec.stages import stage_named
from infra.children.stage import run_stage
from infra.listeners import Listeners, terminal
from infra.site import Site
from tasks.keys import keys_of
from tasks.report import PrefectReport

Refs = dict[str, ArtifactRef]
"""Name -> reference of an input."""

LEASE_SECONDS = 60
"""How long a slot is kept for a run whose machine is gone."""


def perform(stage_name: str, spec: Spec, inputs: Refs, site: Site, named: str | None = None) -> ArtifactRef:
    """Return the stage's artifact, made in a child process unless a fresh one is published.

    What the stage logs goes to the terminal and to the server; of a fresh artifact nothing is said.

    Args:
        stage_name: of the stage.
        spec: what changes the result.
        inputs: what it is made from.
        site: where to run.
        named: how it is called there; None: as the stage.
    """
    name, stage = named or stage_name, stage_named(stage_name)
    server = PrefectReport(name)
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
