"""A draft that a user brings: `--draft` with the folder or hub id of a checkpoint."""

from deepspec.artifacts import read_manifest
from deepspec.checkpoint.files import is_checkpoint
from deepspec.store import Store
from deepspec.target.identity import identify
from flows.choices import Choices
from infra.children.targets import ready_target
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
    source = choices.plan().target
    folder = ready_target(source, source.name).folder
    from deepspec.brought.draft import adopt  # loads torch

    store = Store(site.root)
    identity = identify(folder, scratch_dir() / "hashes.json")
    ref = adopt(choices.draft, folder, identity, store, scratch_dir(), say)
    manifest = read_manifest(store, ref.kind, ref.address)
    algorithm = choices.algorithm if manifest is None else manifest.counts["algorithm"]
    return choices.but(draft=ref.prefix, algorithm=algorithm)
