"""Write the draft in every form asked for, prove each by reading it back, and say which could not express it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from deepspec.artifacts import Artifact
from deepspec.checkpoint.config import write_draft_config
from deepspec.checkpoint.draft import WEIGHTS, load_config
from deepspec.decoding.pair import draft_folder
from deepspec.disk import checksum
from deepspec.errors import TargetError
from deepspec.export.parity_gate import Gate
from deepspec.export.proof import draft_with, output_difference, read_back
from deepspec.export.spec import ExportSpec
from deepspec.formats.exports import INDEX, Compared, ExportedForm, ExportIndex, read_index, write_form
from deepspec.formats.recipe import method_of
from deepspec.forms.form import Form, FormSource
from deepspec.forms.huggingface import DEEPSPEC, HUGGINGFACE
from deepspec.forms.llama_cpp import LLAMA_CPP
from deepspec.forms.sglang import SGLANG
from deepspec.forms.speculators import SPECULATORS
from deepspec.forms.vllm import VLLM
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.parity.check import FormsCompared
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.specs import TargetId

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
        TargetError: the target's GGUF file is not on this machine.
    """
    draft = inputs["draft"]
    target = placement.locations.get(TargetId.model_validate(draft.counts["target"]).digest)
    source = read_source(draft_folder(draft, out.scratch), spec.target, None if target is None else Path(target))
    source = replace(source, gguf=_gguf(spec, placement))
    model = draft_with(source.draft, source.tensors).to(placement.draft_device)
    gate = None
    if spec.gate and target is not None:
        gate = Gate(draft, model, Path(target), placement.scratch)
    writing = Writing(source=source, model=model, gate=gate, out=out)
    forms: dict[str, ExportedForm] = {}
    for done, name in enumerate(spec.forms):
        report.progress(done, len(spec.forms), "forms", name)
        forms[name] = writing.export(FORMS[name], name)
    report.progress(len(spec.forms), len(spec.forms), "forms")
    index = ExportIndex(
        forms=forms, parity=None if gate is None else tuple(_compared(each) for each in gate.comparisons)
    )
    out.file(INDEX).write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _tell(index, report)
    return {
        "forms": [name for name, form in forms.items() if form.refused is None],
        "refused": {name: form.refused for name, form in forms.items() if form.refused is not None},
        "difference": {name: form.difference for name, form in forms.items() if form.refused is None},
        "parity": None if index.parity is None else all(each.passed for each in index.parity),
    }


def _gguf(spec: ExportSpec, placement: Placement) -> Path | None:
    if spec.gguf is None:
        return None
    place = placement.locations.get(spec.gguf)
    if place is None or not Path(place).is_file():
        where = "" if place is None else f" at {place}"
        raise TargetError(
            f"the target's GGUF file {spec.gguf} is not on this machine{where}; put it there, or give "
            "--set export.gguf=FILE where it is"
        )
    return Path(place)


def read_source(folder: Path, target: str, target_folder: Path | None) -> FormSource:
    """Return the draft that lies in a folder, with what the forms need to know of its target."""
    draft = load_config(folder)
    return FormSource(
        draft=draft,
        config={**draft.source, **write_draft_config(draft)},
        tensors=load_file(folder / WEIGHTS),
        target=target or str(draft.source.get("target_model_name_or_path") or "target"),
        target_folder=target_folder,
    )


def read_forms(exports: Artifact, folder: Path, work: Path) -> dict[str, BlockDraft | EagleDraft]:
    """Return a draft as each exported form of it gives it back.

    Args:
        exports: the published forms.
        folder: of the draft itself: what a form leaves to the target comes from there.
        work: where the forms' folders are laid out.

    Raises:
        ParityError: a form does not fit its own config.
    """
    source = read_source(folder, "", None)
    found: dict[str, BlockDraft | EagleDraft] = {}
    for name, form in read_index(exports).forms.items():
        if form.refused is None:
            write_form(exports, name, work / name)
            found[name] = read_back(source, *FORMS[name].read(work / name))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """Forms on their way into an artifact."""

    source: FormSource
    model: BlockDraft | EagleDraft
    """The draft itself, in fp32, on the device where forms are held against it."""
    gate: Gate | None
    """What forms are held against, besides the draft's outputs; None: the target is not here."""
    out: Out
    stored: dict[str, str] = field(default_factory=dict)
    """Checksum -> name of what lies in the artifact already."""

    def export(self, form: Form, name: str) -> ExportedForm:
        """Write one form and prove it.

        Raises:
            ParityError: read back, it does not give what the draft gives.
        """
        reason = form.refuse(self.source)
        if reason is not None:
            return ExportedForm(refused=reason)
        folder = self.out.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        notes = form.write(self.source, folder)
        again = read_back(self.source, *form.read(folder)).to(self.model.fc.weight.device)
        worst = output_difference(again, self.model)
        if self.gate is not None:
            self.gate.check(name, again)
        files = {path.name: self._keep(path, f"{name}__{path.name}") for path in sorted(folder.iterdir())}
        method = method_of(self.source.draft.algorithm, self.source.draft.layout)
        told = method if method in ("dflash", "xpress", "mtp") else None
        options = form.options(self.source)
        return ExportedForm(files=files, method=told, options=options, notes=tuple(notes), difference=worst)

    def _keep(self, path: Path, name: str) -> str:
        """Move a file into the artifact unless its bytes are there already; return the name under which they are."""
        content = checksum(path)
        if content in self.stored:
            path.unlink()
        else:
            self.stored[content] = name
            shutil.move(path, self.out.file(name))
        return self.stored[content]


def _compared(found: FormsCompared) -> Compared:
    return Compared(
        name=found.name,
        difference=found.difference,
        tolerance=found.tolerance,
        passed=found.passed,
        position=found.position,
    )


def _tell(index: ExportIndex, report: Report) -> None:
    report.table("exports", [_row(name, form) for name, form in index.forms.items()])
    if index.parity is None:
        report.log("the parity gate was not run: it needs the target on this machine, and export.gate")
        return
    report.table("parity", [each.row() for each in index.parity])
    for each in index.parity:
        if not each.passed:
            report.log(f"WARNING: {each.name} parts at token {each.position}: {each.difference:.2e}")


def _row(name: str, form: ExportedForm) -> dict[str, Any]:
    outcome = "written" if form.refused is None else f"refused: {form.refused}"
    return {"form": name, "outcome": outcome, "difference": form.difference, "notes": "; ".join(form.notes)}
