"""An evaluation done again: the questions and settings of the first, the target as it is now."""

from datetime import UTC, datetime

from deepspec.artifacts import ArtifactRef, Manifest, read_manifest
from deepspec.errors import NotPublishedError, SpecError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.specs import TargetId
from deepspec.store import Store


def evaluated_again(
    store: Store, released: ArtifactRef, target: TargetId, as_of: datetime
) -> tuple[EvaluateSpec, ArtifactRef]:
    """Return what repeats the evaluation of a release, with its scores as the baseline, and the draft.

    Args:
        store: where the release lies.
        released: a release, or scores.
        target: as it is now.
        as_of: moment that the new scores speak of.

    Raises:
        SpecError: it is neither.
        NotPublishedError: its scores are gone.
    """
    manifest = scores_of(store, released)
    spec = EvaluateSpec.model_validate(manifest.spec).but(
        target=target, as_of=as_of.astimezone(UTC).isoformat(timespec="seconds"), baseline=manifest.address
    )
    return spec, manifest.inputs["draft"]


def scores_of(store: Store, released: ArtifactRef) -> Manifest:
    """Return the manifest of the scores of a release, or of scores themselves.

    Raises:
        SpecError: it is neither.
        NotPublishedError: its scores are gone.
    """
    if released.kind not in ("release", "scores"):
        raise SpecError(
            f"{released.prefix} is of kind {released.kind}; wanted a release or scores, see: deepspec status"
        )
    manifest = read_manifest(store, released.kind, released.address)
    if manifest is not None and released.kind == "release":
        manifest = read_manifest(store, "scores", manifest.inputs["scores"].address)
    if manifest is None:
        raise NotPublishedError(
            f"the scores of {store.uri(released.prefix)} are not published; evaluate and release again"
        )
    return manifest
