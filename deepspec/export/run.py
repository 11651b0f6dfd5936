"""Write the draft in every form asked for, prove each by reading it back, and say which could not express it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from deepspec.artifacts import Artifact, Placement, Report, TargetId, checksum
from deepspec.decoding.pair import draft_folder
from deepspec.export.form import Form, Source
from deepspec.export.huggingface import DEEPSPEC, HUGGINGFACE
from deepspec.export.llama_cpp import LLAMA_CPP
from deepspec.export.proof import difference
from deepspec.export.sglang import SGLANG
from deepspec.export.spec import ExportSpec
from deepspec.export.speculators import SPECULATORS
from deepspec.export.vllm import VLLM
from deepspec.formats.draft import WEIGHTS, load_config
from deepspec.formats.draft_config import write_draft_config
from deepspec.formats.exports import INDEX, ExportedForm, ExportIndex
from deepspec.publish import Out

FORMS: Mapping[str, Form] = {
    "deepspec": DEEPSPEC,
    "vllm": VLLM,
    "sglang": SGLANG,
    "huggingface": HUGGINGFACE,
    "speculators": SPECULATORS,
    "llama.cpp": LLAMA_CPP,
}
"""Name in the spec -> form."""


def run(
    spec: ExportSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish the forms' files and exports.json; return what was written, refused and how far each differs.

    Raises:
        CheckpointError: the draft cannot be read.
        ParityError: a form that was read back does not give what the draft gives.
    """
    draft = inputs["draft"]
    target = placement.locations.get(TargetId.model_validate(draft.counts["target"]).digest)
    source = read_source(draft_folder(draft, out.scratch), spec.target, None if target is None else Path(target))
    stored: dict[str, str] = {}
    forms: dict[str, ExportedForm] = {}
    for done, name in enumerate(spec.forms):
        report.progress(done, len(spec.forms), "forms", name)
        forms[name] = export(FORMS[name], name, source, out, stored)
    index = ExportIndex(forms=forms)
    out.file(INDEX).write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")
    report.table("exports", [_row(name, form) for name, form in forms.items()])
    return {
        "forms": [name for name, form in forms.items() if form.refused is None],
        "refused": {name: form.refused for name, form in forms.items() if form.refused is not None},
        "difference": {name: form.difference for name, form in forms.items() if form.refused is None},
    }


def read_source(folder: Path, target: str, target_folder: Path | None) -> Source:
    """Return the draft that lies in a folder, with what the forms need to know of its target."""
    draft = load_config(folder)
    return Source(
        draft=draft,
        config={**draft.source, **write_draft_config(draft)},
        tensors=load_file(folder / WEIGHTS),
        target=target or str(draft.source.get("target_model_name_or_path") or "target"),
        target_folder=target_folder,
    )


def export(form: Form, name: str, source: Source, out: Out, stored: dict[str, str]) -> ExportedForm:
    """Write one form below `out` and prove it.

    Args:
        form: how it is written and read.
        name: what it is called.
        source: the draft.
        out: where its files go.
        stored: checksum -> name of what lies there already; grows.
    """
    reason = form.refuse(source)
    if reason is not None:
        return ExportedForm(refused=reason)
    folder = out.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notes = form.write(source, folder)
    worst = difference(source, *form.read(folder))
    files = {path.name: _keep(path, f"{name}__{path.name}", out, stored) for path in sorted(folder.iterdir())}
    return ExportedForm(files=files, notes=tuple(notes), difference=worst)


def _keep(path: Path, name: str, out: Out, stored: dict[str, str]) -> str:
    """Move a file into the artifact unless its bytes are there already; return the name under which they are."""
    content = checksum(path)
    if content in stored:
        path.unlink()
    else:
        stored[content] = name
        shutil.move(path, out.file(name))
    return stored[content]


def _row(name: str, form: ExportedForm) -> dict[str, Any]:
    outcome = "written" if form.refused is None else f"refused: {form.refused}"
    return {"form": name, "outcome": outcome, "difference": form.difference, "notes": "; ".join(form.notes)}
