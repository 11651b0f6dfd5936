"""A draft that a user brings: `--draft` with the folder or hub id of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from deepspec.artifacts import ArtifactRef, read_manifest
from deepspec.checkpoint.files import is_checkpoint
from deepspec.errors import NotPublishedError
from deepspec.placement import Placement
from deepspec.specs import Spec
from deepspec.stages import BROUGHT, Work, materialize
from deepspec.store import Store
from deepspec.target.identity import identify
from flows.choices import Choices
from infra.children.targets import ready_target
from infra.listeners import Listeners, attached, terminal
from infra.settings import scratch_dir
from infra.site import Site
from infra.terminal import say


def adopted(choices: Choices, site: Site) -> Choices:
    """Return the choices with the checkpoint that they name published as a draft; others as they are.

    Raises:
        CheckpointError: it cannot be read, is not sound, or was made for another target.
    """
    if choices.draft is None or not is_checkpoint(choices.draft):
        return choices
    source = choices.plan.target
    folder = ready_target(source, source.name).folder
    from deepspec.brought.draft import adopt_spec, lines  # loads torch

    store = Store(site.root)
    identity = identify(folder, scratch_dir() / "hashes.json")
    spec, place = adopt_spec(choices.draft, folder, identity)
    ref = made_of("adopt", spec, {spec.files[0]: place, identity.digest: folder}, store)
    manifest = read_manifest(store, ref.kind, ref.address)
    if manifest is None:
        raise NotPublishedError(f"{ref.uri} was published and is gone; was it removed meanwhile? try again")
    for line in lines(manifest.counts):
        say(line)
    return choices.but(draft=ref.prefix, algorithm=manifest.counts["algorithm"])


def made_of(name: str, spec: Spec, places: Mapping[str, Path], store: Store) -> ArtifactRef:
    """Return the artifact that is made of something brought, in this process; published once.

    Args:
        name: of the row in `BROUGHT`.
        spec: what it depends on.
        places: what the spec names -> where it lies here.
        store: where to publish.
    """
    placement = Placement(scratch=scratch_dir(), locations={key: str(place) for key, place in places.items()})
    with attached():
        report = Listeners(terminal(name))
        work = Work(stage=BROUGHT[name], spec=spec, inputs={}, store=store, placement=placement, report=report)
        return materialize(work)
