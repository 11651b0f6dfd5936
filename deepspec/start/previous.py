"""Weights of an earlier draft, and its optimizer state, that training may begin with."""

from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from deepspec.artifacts import Artifact, read_manifest
from deepspec.checkpoint.draft import load_draft
from deepspec.errors import CheckpointError
from deepspec.placement import Placement
from deepspec.publish import Out

STATE = "training_state.safetensors"
"""Master weights and optimizer state of a finished run, so that it can be continued."""
DRAFT_FILES = ("config.json", "model.safetensors")


def continued(
    address: str, steps: int, out: Out, placement: Placement, log: Callable[[str], None]
) -> dict[str, Tensor]:
    """Return master weights and optimizer state of a published draft.

    Raises:
        CheckpointError: it is not there.
    """
    tensors: dict[str, Tensor] = load_file(_published(address, out, placement).path(STATE))
    log(
        f"warning: continuing draft {address}, {int(tensors['step'])} steps old, with its optimizer state on a new "
        f"schedule of {steps} steps: the learning rate climbs and falls again"
    )
    return tensors


def warm_weights(name: str, out: Out, placement: Placement, log: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the master weights of a public checkpoint's folder, or of a published draft.

    Raises:
        CheckpointError: it is not there, or cannot be read.
    """
    log(f"starting from the weights of draft {name}; its optimizer state is not taken")
    return {f"master.{key}": value.detach().float() for key, value in _loaded(name, out, placement)}


def _loaded(name: str, out: Out, placement: Placement) -> Iterator[tuple[str, Tensor]]:
    if name in placement.locations:
        folder = Path(placement.locations[name])
    else:
        artifact = _published(name, out, placement)
        folder = out.scratch / "previous"
        folder.mkdir(exist_ok=True)
        for file in DRAFT_FILES:
            (folder / file).unlink(missing_ok=True)
            (folder / file).symlink_to(artifact.path(file).resolve())
    return load_draft(folder).named_parameters()


def _published(address: str, out: Out, placement: Placement) -> Artifact:
    manifest = read_manifest(out.store, out.kind, address)
    if manifest is None:
        where = out.store.uri(f"{out.kind}/{address}")
        raise CheckpointError(
            f"there is no draft {address} to begin with: {where} is not published; see deepspec status"
        )
    return Artifact(out.store, manifest, placement.scratch)
