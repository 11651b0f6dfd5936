"""Lay out what is published: the forms of all engines, the card, scores, speed, calibration and provenance.

README.md          the model card
report.md          the same numbers for people who have the store
scores.json, speed.json, acceptance.png
calibration.json   temperatures of the confidence head, one per position, where they were fitted
provenance.json    manifests of everything that the draft was made from
exports.json, FORM__NAME   the forms, as in the exports; `write_form` lays out a folder, the card in it
"""

import base64
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deepspec.artifacts import Artifact, Manifest, Placement, Report, canonical_json, read_manifest
from deepspec.errors import CorruptArtifactError
from deepspec.formats.exports import INDEX, ExportedForm, ExportIndex, read_index
from deepspec.formats.scores import SCORES, CalibrationScore, Scores, read_scores
from deepspec.formats.speed import SPEED, Speed, read_speed
from deepspec.publish import Out
from deepspec.release import card
from deepspec.release.spec import ReleaseSpec

ACCEPTANCE = "acceptance.png"
CALIBRATION = "calibration.json"
CARD = "README.md"
PROVENANCE = "provenance.json"
REPORT = "report.md"


def run(
    spec: ReleaseSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish the release; return its title, the forms in it and what its card warns of.

    Raises:
        CorruptArtifactError: scores, speed or exports are not of this draft, or cannot be read.
    """
    del placement  # nothing is computed here
    scores, speed = read_scores(inputs["scores"].path(SCORES)), read_speed(inputs["speed"].path(SPEED))
    _check_same_draft(inputs, scores, speed)
    index = read_index(inputs["exports"])
    lineage = find_lineage(inputs)
    calibration = next((each for each in scores.calibration if each.confidence_temperatures), None)
    text = render(spec, inputs["draft"].counts, scores, speed, index, lineage)
    tables = _report(inputs["scores"], speed)
    _copy_files(inputs, out)
    _write(out, CARD, text.encode())
    _write(out, REPORT, f"{tables}\n\n![acceptance by position]({ACCEPTANCE})".encode())
    _write(out, PROVENANCE, canonical_json({name: _origin(found) for name, found in lineage.items()}))
    if calibration is not None:
        _write(out, CALIBRATION, canonical_json(_calibration(calibration)))
    _write(out, INDEX, _with_card(index).model_dump_json(indent=1).encode())
    picture = base64.b64encode(inputs["scores"].read_bytes(ACCEPTANCE)).decode()
    report.markdown("report", f"{tables}\n\n![acceptance by position](data:image/png;base64,{picture})")
    report.markdown("card", text.split("---\n", 2)[2].lstrip())
    return {
        "title": card.title(spec, scores.algorithm),
        "accepted_length": {temperature: found.accepted_length.value for temperature, found in scores.overall.items()},
        "lossless": None if scores.lossless is None else scores.lossless.passed,
        "speedup": {str(each.batch): each.speedup for each in speed.batches},
        "forms": [name for name, form in index.forms.items() if form.refused is None],
        "refused": {name: form.refused for name, form in index.forms.items() if form.refused is not None},
        "warnings": warnings(scores, speed, index),
    }


def render(
    spec: ReleaseSpec,
    trained: Mapping[str, Any],
    scores: Scores,
    speed: Speed,
    index: ExportIndex,
    lineage: Mapping[str, Manifest],
) -> str:
    """Return the model card."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(card.front_matter(spec, scores.algorithm), sort_keys=False).strip(),
        title=card.title(spec, scores.algorithm),
        spec=spec,
        algorithm=scores.algorithm,
        trained=trained,
        slots=scores.slots,
        warnings=warnings(scores, speed, index),
        scores=card.markdown_table(card.score_rows(scores)),
        scores_target=scores.target,
        lossless=_lossless(scores),
        calibration=next((each for each in scores.calibration if each.confidence_temperatures), None),
        speed=speed,
        speeds=card.markdown_table(card.speed_rows(speed)),
        forms=_forms(spec, scores, index),
        refused={name: form.refused for name, form in index.forms.items() if form.refused is not None},
        lineage=card.markdown_table(card.lineage_rows(lineage)),
    )


def warnings(scores: Scores, speed: Speed, index: ExportIndex) -> list[str]:
    """Return what a user of the release must be told first."""
    told = []
    if scores.lossless is None:
        told.append("Losslessness was not checked.")
    elif not scores.lossless.passed:
        told.append("Speculative decoding with this draft was not lossless in evaluation: do not serve it.")
    unproved = [name for name, form in index.forms.items() if form.refused is None and form.difference is None]
    if unproved:
        told.append(f"Not proved by reading back: {', '.join(unproved)}.")
    if speed.batches and max(each.speedup for each in speed.batches) <= 1:
        told.append("On the machine measured below, plain decoding is faster at every batch size.")
    best = max((found.accepted_length.value or 0 for found in scores.overall.values()), default=0)
    without = scores.untrained.accepted_length.value if scores.untrained is not None else None
    if without is not None and best <= without:
        told.append(f"The draft is accepted no longer ({best:.3f}) than an untrained one ({without:.3f}).")
    return told


def find_lineage(inputs: Mapping[str, Artifact]) -> dict[str, Manifest]:
    """Return the manifests of the inputs and of all that they were made from, by `kind/address`."""
    found: dict[str, Manifest] = {}
    waiting = [(artifact.store, artifact.ref) for artifact in inputs.values()]
    while waiting:
        store, ref = waiting.pop()
        manifest = None if ref.prefix in found else read_manifest(store, ref.kind, ref.address)
        if manifest is not None:
            found[ref.prefix] = manifest
            waiting += [(store, each) for each in manifest.inputs.values()]
    return found


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


def _report(scores: Artifact, speed: Speed) -> str:
    """Return the tables of scores and of speed, for people."""
    speeds = card.markdown_table(card.speed_rows(speed))
    return f"{scores.read_bytes(REPORT).decode().rstrip()}\n\n## Speed on {speed.hardware}\n\n{speeds}"


def _check_same_draft(inputs: Mapping[str, Artifact], scores: Scores, speed: Speed) -> None:
    wanted = inputs["draft"].ref
    told = {"scores": scores.draft, "speed": speed.draft, "exports": inputs["exports"].manifest.inputs["draft"].address}
    wrong = [f"{name} are of draft {address}" for name, address in told.items() if address != wanted.address]
    if wrong:
        raise CorruptArtifactError(f"{'; '.join(wrong)}, the release is of {wanted.address}; run those stages again")


def _copy_files(inputs: Mapping[str, Artifact], out: Out) -> None:
    for name in inputs["exports"].names():
        if name != INDEX:
            _link(inputs["exports"].path(name), out.file(name))
    for kind, name in (("scores", SCORES), ("scores", ACCEPTANCE), ("speed", SPEED)):
        _link(inputs[kind].path(name), out.file(name))


def _link(source: Path, destination: Path) -> None:
    """Link a file where the disk allows, so that a release in the same store takes no room twice."""
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def _write(out: Out, name: str, data: bytes) -> None:
    out.file(name).write_bytes(data if data.endswith(b"\n") else data + b"\n")


def _with_card(index: ExportIndex) -> ExportIndex:
    """Return an index in whose folders the card lies, too."""
    forms = {name: form if form.refused is not None else _form_with_card(form) for name, form in index.forms.items()}
    return ExportIndex(forms=forms)


def _form_with_card(form: ExportedForm) -> ExportedForm:
    return form.model_copy(update={"files": {**form.files, CARD: CARD, ACCEPTANCE: ACCEPTANCE}})


def _calibration(score: CalibrationScore) -> dict[str, Any]:
    return {
        "confidence_temperatures": list(score.confidence_temperatures),
        "sampling_temperature": score.temperature,
        "fitted_rounds": score.fitted_rounds,
        "ece_before": [each.ece for each in score.before],
        "ece_after": [each.ece for each in score.after],
    }


def _lossless(scores: Scores) -> str:
    check = scores.lossless
    if check is None:
        return "Losslessness was not checked."
    verdict = "lossless" if check.passed else "**not lossless**"
    return (
        f"At temperature 0 against the target's own generation: {verdict}; {check.equal} of {check.samples} samples "
        f"are equal token for token, {check.ties} part where the target's two best logits nearly tie."
    )


def _forms(spec: ReleaseSpec, scores: Scores, index: ExportIndex) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "command": card.serving(name, scores.algorithm, scores.slots, spec.target, form),
            "notes": form.notes,
            "difference": "unknown" if form.difference is None else f"{form.difference:g}",
        }
        for name, form in index.forms.items()
        if form.refused is None
    ]
