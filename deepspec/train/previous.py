"""Weights of an earlier draft, and its optimizer state, that training may begin with."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from deepspec.artifacts import Artifact, read_manifest
from deepspec.errors import CheckpointError
from deepspec.formats.draft import load_draft
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.train.checkpoint import Saved
from deepspec.train.loop import Loop

STATE = "training_state.safetensors"
"""Master weights and optimizer state of a finished run, so that it can be continued."""
DRAFT_FILES = ("config.json", "model.safetensors")


def previous(loop: Loop, out: Out, placement: Placement, log: Callable[[str], None]) -> Saved | None:
    """Return the state that a loop's spec begins with, and log what is taken; None: the spec names none.

    Raises:
        CheckpointError: the earlier draft is not there, or has another shape.
    """
    spec = loop.task.spec
    if spec.continue_from is not None:
        tensors = load_file(_published(spec.continue_from, out, placement).path(STATE))
        log(
            f"warning: continuing draft {spec.continue_from}, {int(tensors['step'])} steps old, with its optimizer "
            f"state on a new schedule of {loop.total} steps: the learning rate climbs and falls again"
        )
    elif spec.warm_start is not None:
        tensors = _weights(spec.warm_start, out, placement)
        log(f"starting from the weights of draft {spec.warm_start}; its optimizer state is not taken")
    else:
        return None
    return Saved(step=0, tensors=tensors, rows=[], progress={})


def _published(address: str, out: Out, placement: Placement) -> Artifact:
    manifest = read_manifest(out.store, out.kind, address)
    if manifest is None:
        where = out.store.uri(f"{out.kind}/{address}")
        raise CheckpointError(
            f"there is no draft {address} to begin with: {where} is not published; see deepspec status"
        )
    return Artifact(out.store, manifest, placement.scratch)


def _weights(name: str, out: Out, placement: Placement) -> dict[str, Tensor]:
    """Return the master weights of a public checkpoint's folder, or of a published draft."""
    if name in placement.locations:
        folder = Path(placement.locations[name])
    else:
        artifact = _published(name, out, placement)
        folder = out.scratch / "previous"
        folder.mkdir(exist_ok=True)
        for file in DRAFT_FILES:
            (folder / file).unlink(missing_ok=True)
            (folder / file).symlink_to(artifact.path(file).resolve())
    return {f"master.{name}": value.detach().float() for name, value in load_draft(folder).named_parameters()}
