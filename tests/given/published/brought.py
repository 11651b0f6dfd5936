"""What users bring, published as the command line does it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec.artifacts import ArtifactRef
from deepspec.brought.cache import import_spec
from deepspec.brought.draft import adopt_spec
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.specs import Spec, TargetId
from deepspec.stages import BROUGHT, Work, materialize
from deepspec.store import Store


def made(name: str, spec: Spec, places: Mapping[str, Path], store: Store, scratch: Path, report: Report) -> ArtifactRef:
    placement = Placement(scratch=scratch, locations={key: str(place) for key, place in places.items()})
    return materialize(Work(stage=BROUGHT[name], spec=spec, inputs={}, store=store, placement=placement, report=report))


def import_folder(
    folder: Path, target: Path, options: Mapping[str, Any], store: Store, scratch: Path, report: Report
) -> ArtifactRef:
    spec = import_spec(folder, target, options)
    return made("import", spec, {spec.source: folder, spec.target.digest: target}, store, scratch, report)


def adopt(checkpoint: str, folder: Path, target: TargetId, store: Store, scratch: Path, report: Report) -> ArtifactRef:
    spec, place = adopt_spec(checkpoint, folder, target)
    return made("adopt", spec, {spec.files[0]: place, target.digest: folder}, store, scratch, report)
