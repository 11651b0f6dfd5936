"""What commands are given by name: published artifacts, and the targets that they were made with."""

import json
from pathlib import Path

from deepspec.artifacts import Artifact, open_artifact
from deepspec.catalog import find_kind
from deepspec.errors import SpecError
from deepspec.placement import Placement
from deepspec.specs import TargetId
from deepspec.store import Store
from infra.settings import default_root, parts_limit, scratch_dir


def opened(name: str, root: str | None, kind: str) -> Artifact:
    """Return a published artifact of a kind by what the user calls it."""
    store = Store(root or default_root())
    return open_artifact(store, find_kind(store, name, kind), scratch_dir())


def placement_of(artifact: Artifact, target: Path | None, needed: bool = True) -> Placement:
    """Return a placement that knows where the artifact's target lies, where that is needed."""
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    locations = {digest: str(target_folder(artifact, target))} if needed else {}
    return Placement(scratch=scratch_dir(), parts_limit=parts_limit(), locations=locations)


def target_folder(artifact: Artifact, target: Path | None) -> Path:
    """Return the target's folder: the one given, or the one that the last run at this place noted."""
    if target is not None:
        return target
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    noted = scratch_dir() / "targets" / digest
    if not noted.is_file():
        raise SpecError(
            f"{artifact.prefix} was made with target {digest}, which is not known here; give --target FOLDER"
        )
    return Path(json.loads(noted.read_text()))
