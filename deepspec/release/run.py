"""Lay out what is published: the forms of all engines, the card, scores, speed, calibration and provenance.

README.md                 the model card
report.html, report.md    all tables and plots, and the comparison with the release before
scores.json, speed.json, *.png
calibration.json          temperatures of the confidence head, one per position, where they help
provenance.json           manifests of everything that the draft was made from
exports.json, FORM__NAME  the forms, as in the exports; `write_form` lays out a folder, card and calibration in it
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, Manifest, lineage, read_manifest
from deepspec.decoding.compare import differences, published
from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.formats.exports import INDEX, ExportedForm, ExportIndex, read_index
from deepspec.formats.scores import SCORES, CalibrationScore, Difference, Scores, read_scores
from deepspec.formats.speed import SPEED, Speed, read_speed
from deepspec.page.page import html, markdown
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.release import card
from deepspec.release.render import render
from deepspec.release.report import Released, sections, warnings
from deepspec.release.spec import ReleaseSpec
from deepspec.report import Report
from deepspec.specs import canonical_json

CALIBRATION = "calibration.json"
CARD = "README.md"
PROVENANCE = "provenance.json"
FIGURES = {
    "draft": ("learning_curve.png",),
    "scores": ("acceptance.png", "reliability.png"),
    "speed": ("speed.png", "load.png", "served.png"),
}
"""Kind of artifact -> pictures in it, where they were drawn."""


def run(
    spec: ReleaseSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish the release; return its title, the forms in it and what its card warns of.

    Raises:
        CorruptArtifactError: scores, speed or exports are not of this draft, or cannot be read.
    """
    scores, speed = read_scores(inputs["scores"].path(SCORES)), read_speed(inputs["speed"].path(SPEED))
    _check_same_draft(inputs, scores, speed)
    found = Released(
        scores=scores,
        speed=speed,
        index=read_index(inputs["exports"]),
        trained=inputs["draft"].counts,
        lineage=lineage(inputs["scores"].store, (each.ref for each in inputs.values())),
        figures=_figures(inputs),
        differences=against_before(spec, inputs["scores"], placement.scratch),
    )
    text = render(spec, found)
    _copy_files(inputs, out)
    _write(out, CARD, text.encode())
    _write_reports(spec, found, out, report)
    _write(out, PROVENANCE, canonical_json({name: _origin(each) for name, each in found.lineage.items()}))
    extra = [CARD, *shown_in(text)]
    if found.calibration is not None:
        _write(out, CALIBRATION, canonical_json(_calibration(found.calibration)))
        extra.append(CALIBRATION)
    _write(out, INDEX, _with_files(found.index, extra).model_dump_json(indent=1).encode())
    report.markdown("card", text.split("---\n", 2)[2].lstrip())
    return {
        "title": card.title(spec, scores.algorithm),
        "accepted_length": {temperature: each.accepted_length.value for temperature, each in scores.overall.items()},
        "lossless": scores.is_lossless,
        "speedup": {str(each.batch): each.speedup for each in speed.batches},
        "forms": [name for name, form in found.index.forms.items() if form.refused is None],
        "refused": {name: form.refused for name, form in found.index.forms.items() if form.refused is not None},
        "warnings": warnings(found),
    }


def shown_in(text: str) -> list[str]:
    """Return the names of the pictures that a card shows: they lie beside it wherever it is laid out."""
    return re.findall(r"^!\[[^]]*\]\(([\w.]+)\)$", text, re.MULTILINE)


def against_before(spec: ReleaseSpec, scores: Artifact, scratch: Path) -> list[Difference]:
    """Return the scores against those of the release before; nothing where there is none.

    Raises:
        NotPublishedError: those are gone.
    """
    if spec.previous is None:
        return []
    manifest = read_manifest(scores.store, "scores", spec.previous)
    if manifest is None:
        raise NotPublishedError(f"the scores of the release before, scores/{spec.previous}, are gone; take another one")
    before = Artifact(scores.store, manifest, scratch)
    slots = max(read_scores(each.path(SCORES)).slots for each in (before, scores))
    return differences(published(before), published(scores), slots)


def _figures(inputs: Mapping[str, Artifact]) -> dict[str, bytes]:
    return {
        name.removesuffix(".png"): inputs[kind].read_bytes(name)
        for kind, names in FIGURES.items()
        for name in names
        if name in inputs[kind].names()
    }


def _write_reports(spec: ReleaseSpec, found: Released, out: Out, report: Report) -> None:
    told = card.title(spec, found.scores.algorithm), warnings(found), sections(found)
    _write(out, "report.html", html(*told).encode())
    _write(out, "report.md", (text := markdown(*told)).encode())
    report.markdown("report", text)
    for name, png in found.figures.items():
        report.figure(name, png)


def _origin(manifest: Manifest) -> dict[str, Any]:
    """Return what a manifest says of where an artifact came from, without paths and names of machines."""
    kept = ("git", "python", "packages", "started", "finished")
    return {
        "version": manifest.version,
        "content": manifest.content,
        "spec": manifest.spec,
        "inputs": {kind: f"{ref.prefix} with content {ref.content}" for kind, ref in manifest.inputs.items()},
        "counts": manifest.counts,
        "provenance": {key: value for key, value in manifest.provenance.items() if key in kept},
    }


def _check_same_draft(inputs: Mapping[str, Artifact], scores: Scores, speed: Speed) -> None:
    wanted = inputs["draft"].ref
    told = {"scores": scores.draft, "speed": speed.draft, "exports": inputs["exports"].manifest.inputs["draft"].address}
    wrong = [f"{name} are of draft {address}" for name, address in told.items() if address != wanted.address]
    if wrong:
        raise CorruptArtifactError(f"{'; '.join(wrong)}, the release is of {wanted.address}; run those stages again")


def _copy_files(inputs: Mapping[str, Artifact], out: Out) -> None:
    wanted: dict[str, tuple[str, ...]] = dict(FIGURES)
    wanted["scores"] += (SCORES,)
    wanted["speed"] += (SPEED,)
    wanted["exports"] = tuple(name for name in inputs["exports"].names() if name != INDEX)
    for kind, names in wanted.items():
        for name in set(names) & set(inputs[kind].names()):
            _link(inputs[kind].path(name), out.file(name))


def _link(source: Path, destination: Path) -> None:
    """Link a file where the disk allows, so that a release in the same store takes no room twice."""
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def _write(out: Out, name: str, data: bytes) -> None:
    out.file(name).write_bytes(data if data.endswith(b"\n") else data + b"\n")


def _with_files(index: ExportIndex, names: list[str]) -> ExportIndex:
    """Return an index in whose folders these files lie, too."""
    return index.model_copy(update={"forms": {name: _form_with(form, names) for name, form in index.forms.items()}})


def _form_with(form: ExportedForm, names: list[str]) -> ExportedForm:
    if form.refused is not None:
        return form
    return form.model_copy(update={"files": {**form.files, **{name: name for name in names}}})


def _calibration(score: CalibrationScore) -> dict[str, Any]:
    return {
        "confidence_temperatures": list(score.confidence_temperatures),
        "sampling_temperature": score.temperature,
        "fitted_rounds": score.fitted_rounds,
        "ece_before": [each.ece for each in score.before],
        "ece_after": [each.ece for each in score.after],
    }
