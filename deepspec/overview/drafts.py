"""Several drafts on one page: accepted lengths, acceptance by position, speed, learning curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact, reference
from deepspec.catalog import catalog, find
from deepspec.decoding.compare import compare_drafts
from deepspec.errors import SourceError, SpecError
from deepspec.formats.scores import SCORES, Scores, read_scores
from deepspec.formats.speed import SPEED, Speed, read_speed
from deepspec.overview.page import Page, pictures
from deepspec.page.figure import acceptance_by_position
from deepspec.page.page import Section
from deepspec.page.tables import COUNTED, acceptance_row
from deepspec.store import Store

_OF_A_DRAFT = ("scores", "speed", "exports", "release")
"""Kinds that were made from one draft, and name it."""
_PROPOSING = "proposing"
"""Column of the share of time that a draft takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A draft and the newest of what was measured of it."""

    name: str
    draft: Artifact
    scores: Artifact | None
    speed: Artifact | None

    @property
    def scored(self) -> Scores | None:
        """Return its scores, read."""
        return None if self.scores is None else read_scores(self.scores.path(SCORES))

    @property
    def timed(self) -> Speed | None:
        """Return its speed, read."""
        return None if self.speed is None else read_speed(self.speed.path(SPEED))


def find_drafts(store: Store, names: Sequence[str], scratch: Path) -> list[Found]:
    """Return the drafts that names stand for, each with its newest scores and speed, or with those that were named.

    Args:
        store: where they are.
        names: refs or artifacts: drafts, or scores, speed, exports or releases of drafts.
        scratch: for what is fetched.

    Raises:
        SpecError: one is no draft's, or two names are of one draft.
    """
    entries = [entry.manifest for entry in catalog(store) if entry.state == "published" and entry.manifest is not None]
    newest = sorted(entries, key=lambda manifest: str(manifest.provenance.get("finished", "")))
    measured: dict[tuple[str, str], ArtifactRef] = {}
    for manifest in newest:
        if manifest.kind in ("scores", "speed"):
            measured[manifest.kind, manifest.inputs["draft"].address] = reference(store, manifest)

    def opened(ref: ArtifactRef | None) -> Artifact | None:
        return None if ref is None else open_artifact(store, ref, scratch)

    found = []
    for name in names:
        artifact = open_artifact(store, find(store, name), scratch)
        draft = _draft_of(artifact, name)
        inputs = {**artifact.manifest.inputs, artifact.manifest.kind: artifact.ref}
        scores, speed = (inputs.get(kind, measured.get((kind, draft.address))) for kind in ("scores", "speed"))
        found.append(
            Found(name=name, draft=open_artifact(store, draft, scratch), scores=opened(scores), speed=opened(speed))
        )
    return found


def _draft_of(artifact: Artifact, name: str) -> ArtifactRef:
    kind = artifact.manifest.kind
    if kind == "draft":
        return artifact.ref
    if kind not in _OF_A_DRAFT:
        raise SpecError(
            f"{name} is of kind {kind}, which is of no draft; several are compared where each is a draft, or "
            f"{', '.join(_OF_A_DRAFT)} of one"
        )
    return artifact.manifest.inputs["draft"]


def side_by_side(found: Sequence[Found]) -> Page:
    """Return several drafts on one page."""
    missing = [each.name for each in found if each.scores is None]
    return Page(
        title=f"{len(found)} drafts side by side",
        warnings=[f"Not evaluated: {', '.join(missing)}; run: deepspec evaluate."] if missing else [],
        sections=[
            Section(rows=[_trained(each) for each in found]),
            *_acceptance(found),
            *_against_the_first(found),
            Section(title="Speed", texts=_machines(found), rows=[row for each in found for row in _speed(each)]),
            Section(title="While they were trained", figures=_curves(found)),
        ],
    )


def _trained(found: Found) -> dict[str, Any]:
    counts = found.draft.counts
    return {
        "draft": found.name,
        "artifact": found.draft.manifest.address[:12],
        "algorithm": counts["algorithm"],
        "parameters": f"{counts.get('parameters', 0):,}",
        "steps": f"{counts.get('steps') or 0:,}",
        "tokens": f"{counts.get('tokens') or 0:,}",
    }


def _acceptance(found: Sequence[Found]) -> list[Section]:
    """Return accepted lengths over all benchmarks, and their picture: a curve a draft and temperature."""
    overall = [
        (each.name, heat, acceptance)
        for each in found
        for heat, acceptance in (each.scored.overall if each.scored else {}).items()
    ]
    if not overall:
        return []
    rows = [{"draft": name, **_without_name(acceptance_row("all", float(heat), told))} for name, heat, told in overall]
    curves = {f"{name}, temperature {float(heat):g}": told for name, heat, told in overall}
    figures = {"acceptance by position": acceptance_by_position(curves)}
    return [Section(title="Acceptance", texts=[COUNTED], rows=rows, figures=figures)]


def _without_name(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "benchmark"}


def _against_the_first(found: Sequence[Found]) -> list[Section]:
    """Return the others against the first draft on the questions that both were asked."""
    first, *others = found
    rows, texts = [], [f"On the questions that both were asked; first is {first.name}."]
    for each in others:
        if first.scores is None or each.scores is None:
            continue
        try:
            rows += [{"draft": each.name, **told.row()} for told in compare_drafts(first.scores, each.scores)]
        except SourceError:
            texts.append(f"{each.name} was asked none of its questions.")
    return [Section(title="Against the first", texts=texts, rows=rows)] if rows or len(texts) > 1 else []


def _speed(found: Found) -> list[dict[str, Any]]:
    """Return a row for each batch size, under the draft's name: in a row of one draft `draft` is a share of time."""
    rows = found.timed.rows() if found.timed else ()
    return [{"draft": found.name} | {_PROPOSING if key == "draft" else key: row[key] for key in row} for row in rows]


def _machines(found: Sequence[Found]) -> list[str]:
    """Return where speeds were measured; of several machines they cannot be compared."""
    machines = {each.name: each.timed.hardware for each in found if each.timed}
    if len(set(machines.values())) < 2:
        return list(dict.fromkeys(machines.values()))
    told = [f"{name}: {machine}" for name, machine in machines.items()]
    return ["Measured on different machines, which times of one cannot be held against the other's.", *told]


def _curves(found: Sequence[Found]) -> dict[str, bytes]:
    drawn = {f"learning curve of {each.name}": pictures(each.draft).get("learning_curve") for each in found}
    return {name: png for name, png in drawn.items() if png is not None}
