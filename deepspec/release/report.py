"""What the release reports: its warnings, and the sections of its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepspec.artifacts import Manifest
from deepspec.formats.exports import ExportIndex
from deepspec.formats.scores import CalibrationScore, Difference, Scores
from deepspec.formats.speed import Speed
from deepspec.page import speed as speed_page
from deepspec.page import training
from deepspec.page.page import Section
from deepspec.page.scores import left_out_warnings
from deepspec.page.scores import sections as score_sections
from deepspec.page.tables import lossless_text

PARITY = "One text through the target, the cache that the draft was trained on, the draft, and every form read back."


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """Everything that the release tells of."""

    scores: Scores
    speed: Speed
    index: ExportIndex
    trained: Mapping[str, Any]
    """What training counted."""
    lineage: Mapping[str, Manifest]
    figures: Mapping[str, bytes]
    """Name -> PNG."""
    differences: Sequence[Difference]
    """The release before, then this one; empty where it is compared with none."""

    @property
    def calibration(self) -> CalibrationScore | None:
        """Return the first calibration for which temperatures were fitted."""
        return next((each for each in self.scores.calibration if each.confidence_temperatures), None)


def warnings(found: Released) -> list[str]:
    """Return what a user of the release must be told first."""
    return [
        *found.trained.get("warnings", ()),
        *_of_scores(found.scores),
        *_of_forms(found.index),
        *speed_page.warnings(found.speed),
    ]


def _of_scores(scores: Scores) -> list[str]:
    told = []
    if scores.is_lossless is None:
        told.append(lossless_text(scores.lossless))
    elif not scores.is_lossless:
        told.append("Speculative decoding with this draft was not lossless in evaluation: do not serve it.")
    best = max((each.accepted_length.value or 0 for each in scores.overall.values()), default=0)
    without = scores.untrained.accepted_length.value if scores.untrained is not None else None
    told += left_out_warnings(scores)
    if without is not None and best <= without:
        told.append(f"The draft is accepted no longer ({best:.3f}) than an untrained one ({without:.3f}).")
    return told


def _of_forms(index: ExportIndex) -> list[str]:
    unproved = [name for name, form in index.forms.items() if form.refused is None and form.difference is None]
    told = [f"Not proved by reading back: {', '.join(unproved)}."] if unproved else []
    if index.parity is None:
        return [*told, "The parity gate was not run on these forms."]
    apart = [each.name for each in index.parity if not each.passed]
    return [*told, f"The parity gate did not pass: {', '.join(apart)}."] if apart else told


def sections(found: Released) -> list[Section]:
    """Return the parts of the report."""
    rows = [each.row() for each in found.differences]
    before = [Section(title="Against the release before", texts=["That one is the first."], rows=rows)] if rows else []
    gate = [Section(title="Parity gate", texts=[PARITY], rows=[each.row() for each in found.index.parity or ()])]
    return [
        *score_sections(found.scores, found.figures),
        *training.sections(found.trained, found.figures),
        *before,
        *speed_page.sections(found.speed, found.figures),
        *gate,
    ]
