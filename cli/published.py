"""What commands are given by name: published artifacts, and the targets that they were made with."""

import json
from pathlib import Path

from deepspec.artifacts import Artifact, open_artifact
from deepspec.catalog import find_kind
from deepspec.checkpoint.files import checkpoint_folder, is_checkpoint, read_config
from deepspec.errors import SpecError
from deepspec.placement import Placement
from deepspec.specs import TargetId
from deepspec.store import Store
from infra.settings import named_root, parts_limit, scratch_dir


def opened(name: str, root: str | None, kind: str) -> Artifact:
    """Return a published artifact of a kind by what the user calls it."""
    store = Store(named_root(root))
    return open_artifact(store, find_kind(store, name, kind), scratch_dir())


def named_draft(name: str, target: Path | None, root: str | None) -> tuple[Artifact | Path, Path]:
    """Return a published draft, or a checkpoint's folder, and the folder of its target; torch is not loaded for that.

    Raises:
        SpecError: no target is given for a checkpoint, or none is known of a published draft.
        CheckpointError, NotPublishedError: there is no such draft.
    """
    if not is_checkpoint(name):
        draft = opened(name, root, "draft")
        return draft, target_folder(draft, target)
    folder, given = checkpoint_folder(name, weights=target is not None), given_folder(target)
    read_config(folder)
    if given is None:
        raise SpecError(f"{name} is a checkpoint, which does not say where its target lies; give --target FOLDER")
    return folder, given


def given_folder(target: Path | None) -> Path | None:
    """Return the folder of a target that a user gives, if any.

    Raises:
        SpecError: there is no such folder.
    """
    if target is not None and not target.is_dir():
        raise SpecError(f"--target {target}: no such folder; wanted the folder of the target's checkpoint")
    return target


def placement_of(artifact: Artifact, target: Path | None, needed: bool = True) -> Placement:
    """Return a placement that knows where the artifact's target lies, where that is needed."""
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    locations = {digest: str(target_folder(artifact, target))} if needed else {}
    return Placement(scratch=scratch_dir(), parts_limit=parts_limit(), locations=locations)


def target_folder(artifact: Artifact, target: Path | None) -> Path:
    """Return the target's folder: the one given, or the one that the last run at this place noted."""
    given = given_folder(target)
    if given is not None:
        return given
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    noted = scratch_dir() / "targets" / digest
    if not noted.is_file():
        raise SpecError(
            f"{artifact.prefix} was made with target {digest}, which is not known here; give --target FOLDER"
        )
    return Path(json.loads(noted.read_text()))
