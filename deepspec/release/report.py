"""What the release reports: its warnings, and the sections of its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepspec.artifacts import Manifest
from deepspec.formats.exports import ExportIndex
from deepspec.formats.scores import CalibrationScore, Difference, Scores
from deepspec.formats.speed import Speed
from deepspec.page.page import Section
from deepspec.page.scores import left_out_warnings
from deepspec.page.scores import sections as score_sections
from deepspec.page.tables import lossless_text
from deepspec.release import under_load

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
        *_of_speed(found.speed),
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


def _of_speed(speed: Speed) -> list[str]:
    told = [speed.served.warning] if speed.served is not None and speed.served.warning else []
    told += under_load.warned(speed)
    if speed.batches and max(each.speedup for each in speed.batches) <= 1:
        told.append("On the machine measured below, plain decoding is faster at every batch size.")
    return told


def sections(found: Released) -> list[Section]:
    """Return the parts of the report."""
    rows = [each.row() for each in found.differences]
    before = [Section(title="Against the release before", texts=["That one is the first."], rows=rows)] if rows else []
    trained = _training_sections(found)
    gate = [Section(title="Parity gate", texts=[PARITY], rows=[each.row() for each in found.index.parity or ()])]
    return [
        *score_sections(found.scores, found.figures),
        *trained,
        *before,
        *_speed_sections(found, found.speed),
        *gate,
    ]


def _training_sections(found: Released) -> list[Section]:
    """Return how accepted length grew in training; nothing of a draft that was trained elsewhere."""
    figures, look = _some(found, "learning_curve"), found.trained.get("held_out") or {}
    if not figures:
        return []
    texts = [
        "Losses, and the accepted length over held-out answers that a walk over their rounds gives, at every look."
    ]
    if "accepted_length" in look:
        low, high = look["accepted_length_low"], look["accepted_length_high"]
        length = f"{look['accepted_length']:.3f} ({low:.3f} to {high:.3f})"
        texts.append(
            f"Those of the draft, of step {look['step']}: {length}. Other prompts than those of the benchmarks."
        )
    return [Section(title="While it was trained", texts=texts, figures=figures)]


def _speed_sections(found: Released, speed: Speed) -> list[Section]:
    measured = f"{speed.hardware}; {speed.engine}; {speed.threads} threads; temperature {speed.temperature:g}."
    parts = [Section(title="Speed", texts=[measured], rows=speed.rows(), figures=_some(found, "speed"))]
    if speed.loads:
        text = (
            "By replay of the evaluation's rounds with the pass and draft times of this machine; plain decoding is 1."
        )
        rows = [each.row() for each in speed.loads]
        parts.append(Section(title="Expected speed-up by load", texts=[text], rows=rows, figures=_some(found, "load")))
    if speed.served is not None:
        text = "The same questions at temperature 0, through an engine that serves the exported draft."
        parts.append(Section(title="Served by an engine", texts=[text], rows=[speed.served.row()]))
    if speed.under_load is not None:
        parts += under_load.sections(speed, _some(found, "served"))
    return parts


def _some(found: Released, name: str) -> dict[str, bytes]:
    return {name: found.figures[name]} if name in found.figures else {}
