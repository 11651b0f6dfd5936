"""The model card, rendered."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deepspec.page import under_load
from deepspec.page.page import table
from deepspec.page.tables import calibration_text, lossless_text
from deepspec.release import card
from deepspec.release.report import Released, warnings
from deepspec.release.spec import ReleaseSpec


def render(spec: ReleaseSpec, found: Released) -> str:
    """Return the model card."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    scores, speed = found.scores, found.speed
    return environment.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(card.front_matter(spec, scores.algorithm), sort_keys=False).strip(),
        title=card.title(spec, scores.algorithm),
        spec=spec,
        algorithm=scores.algorithm,
        trained=found.trained,
        slots=scores.slots,
        warnings=warnings(found),
        scores=table(card.score_rows(scores)),
        scores_target=scores.target,
        lossless=lossless_text(scores.lossless),
        differences=table([each.row() for each in found.differences]),
        calibration=found.calibration,
        confidence=calibration_text(found.calibration or scores.calibration[0]) if scores.calibration else "",
        speed=speed,
        speeds=table(speed.rows()),
        served=table([speed.served.row()]) if speed.served is not None else "",
        load=under_load.card_entries(speed),
        drawn=found.figures,
        forms=_forms(spec, found),
        refused={name: form.refused for name, form in found.index.forms.items() if form.refused is not None},
        parity=table([each.row() for each in found.index.parity or ()]),
        lineage=table(card.lineage_rows(found.lineage)),
    )


def _forms(spec: ReleaseSpec, found: Released) -> list[dict[str, Any]]:
    scores = found.scores
    return [
        {
            "name": name,
            "command": card.serving(name, spec.target, form, card.Proposed.of(scores, found.speed)),
            "notes": form.notes,
            "difference": "unknown" if form.difference is None else f"{form.difference:g}",
        }
        for name, form in found.index.forms.items()
        if form.refused is None
    ]
