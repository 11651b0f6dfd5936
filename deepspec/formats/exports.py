"""The artifact `exports`: one draft in the forms of several engines, and how to lay a form out as a folder.

File names in an artifact are flat, so a form's file lies there as `FORM__NAME`, and files that two forms share lie
there once. `exports.json` says which file of the artifact is which file of which form. See docs/formats/exports.md.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepspec.artifacts import Artifact
from deepspec.disk import check_name, copy_file, writing
from deepspec.errors import CorruptArtifactError, SpecError, UnknownNameError

INDEX = "exports.json"


class ExportedForm(BaseModel):
    """One form: its files, or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refused: str | None = None
    """What of the draft the form cannot express."""
    files: dict[str, str] = Field(default_factory=dict)
    """Name in the form's folder -> name in the artifact."""
    method: Literal["dflash", "xpress", "mtp"] | None = Field(default=None, exclude_if=lambda method: method is None)
    """By what name engines serve the draft; None: eagle3 where it is one, else dspark."""
    options: tuple[str, ...] = Field(default=(), exclude_if=lambda options: not options)
    """Of the command that serves the draft, by which the engine is told what it reads from none of the files."""
    notes: tuple[str, ...] = ()
    """What a user of the folder must know."""
    difference: float | None = None
    """Largest absolute difference of logits and confidence between the draft and the form read back."""


class Compared(BaseModel):
    """Two forms of one thing on one text, as the parity gate found them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    difference: float
    """The largest, relative to what is compared."""
    tolerance: float
    passed: bool
    position: int | None
    """First token at which they part."""

    def row(self) -> dict[str, str]:
        """Return one row of the table that people read."""
        verdict = "pass" if self.passed else f"FAIL from token {self.position}"
        return {
            "compared": self.name,
            "difference": f"{self.difference:.1e}",
            "allowed": f"{self.tolerance:.0e}",
            "verdict": verdict,
        }


class ExportIndex(BaseModel):
    """exports.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    forms: dict[str, ExportedForm]
    parity: tuple[Compared, ...] | None = None
    """What the parity gate found; None: it was not run."""


def read_index(exports: Artifact) -> ExportIndex:
    """Return which forms an artifact holds.

    Raises:
        CorruptArtifactError: exports.json makes no sense.
    """
    try:
        index = ExportIndex.model_validate_json(exports.read_bytes(INDEX))
    except ValidationError as error:
        raise CorruptArtifactError(f"{exports.prefix}/{INDEX} is not an index: {error}; export again") from error
    for form in index.forms.values():
        for name in form.files:
            check_name(name, f"{exports.prefix}/{INDEX}")
    return index


def write_form(exports: Artifact, form: str, destination: Path) -> list[Path]:
    """Lay a form out as a folder that its engine loads, and return the files: copies, theirs to change.

    Raises:
        UnknownNameError: the artifact has no such form.
        SpecError: the form was refused; the message says why.
    """
    index = read_index(exports)
    if form not in index.forms:
        raise UnknownNameError("exported form", form, index.forms)
    found = index.forms[form]
    if found.refused is not None:
        raise SpecError(f"the draft was not exported for {form}: {found.refused}")
    destination.mkdir(parents=True, exist_ok=True)
    return [_place(exports.path(stored), destination / name) for name, stored in sorted(found.files.items())]


def _place(source: Path, destination: Path) -> Path:
    with writing(destination):
        destination.unlink(missing_ok=True)
        copy_file(source, destination)
    return destination
