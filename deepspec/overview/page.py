"""The page of any artifact: what it holds, how it was made, its pictures and tables."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepspec.artifacts import Artifact
from deepspec.formats.scores import SCORES, read_scores
from deepspec.formats.speed import SPEED, read_speed
from deepspec.overview.words import held
from deepspec.page import page, training
from deepspec.page import scores as score_page
from deepspec.page import speed as speed_page
from deepspec.page.page import Section

READY = "report.html"
"""A file in an artifact that is its page already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A report: title, warnings, sections."""

    title: str
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = ()

    def figures(self) -> dict[str, bytes]:
        """Return name of a file, without its ending -> PNG, of all sections."""
        figures = {name: png for each in self.sections for name, png in each.figures.items()}
        return {re.sub(r"[^\w.-]", "_", name): png for name, png in figures.items()}

    def html(self) -> str:
        """Return it as one page that needs nothing else."""
        return page.html(self.title, self.warnings, self.sections)

    def markdown(self) -> str:
        """Return it as markdown, pictures in it."""
        return page.markdown(self.title, self.warnings, self.sections, pictures=True)


def html_of(artifact: Artifact) -> str:
    """Return the page of an artifact: the one that its stage wrote, or one of what it holds."""
    if READY in artifact.names():
        return artifact.read_bytes(READY).decode()
    return page_of(artifact).html()


def page_of(artifact: Artifact) -> Page:
    """Return what there is to say of an artifact that has no page of its own."""
    kind, counts = artifact.manifest.kind, artifact.counts
    return Page(
        title=f"{kind.replace('_', ' ')} {artifact.manifest.address[:12]}",
        warnings=_warnings(artifact),
        sections=[
            Section(texts=[f"{artifact.prefix}: {held(artifact.manifest)}."]),
            *shown(artifact),
            Section(title="Counts", rows=named_values(counts)),
            Section(title="Settings", rows=named_values(artifact.manifest.spec)),
            Section(title="Made from", rows=_origin(artifact)),
        ],
    )


def shown(artifact: Artifact) -> list[Section]:
    """Return the parts of an artifact's page that only its kind has: curves, scores, where it pays."""
    make = _SHOWN.get(artifact.manifest.kind)
    return [] if make is None else make(artifact, pictures(artifact))


def pictures(artifact: Artifact) -> dict[str, bytes]:
    """Return name -> PNG of the pictures in an artifact."""
    names = [name for name in artifact.names() if name.endswith(".png")]
    return {name.removesuffix(".png"): artifact.read_bytes(name) for name in names}


def named_values(told: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """Return nested values as rows of name and value, `train.steps` say; those that are empty say nothing."""
    rows: list[dict[str, str]] = []
    for name, value in told.items():
        if isinstance(value, Mapping):
            rows += named_values(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            rows.append({"name": f"{prefix}{name}", "value": _told(value)})
    return rows


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _warnings(artifact: Artifact) -> list[str]:
    if artifact.manifest.kind == "scores":
        return score_page.warnings(read_scores(artifact.path(SCORES)))
    if artifact.manifest.kind == "speed":
        return speed_page.warnings(read_speed(artifact.path(SPEED)))
    return list(artifact.counts.get("warnings") or ())


def _origin(artifact: Artifact) -> list[dict[str, str]]:
    told = artifact.manifest.provenance
    rows = [{"what": name, "from": ref.prefix} for name, ref in artifact.manifest.inputs.items()]
    return [*rows, *({"what": name, "from": str(told[name])} for name in ("git", "finished") if told.get(name))]


def _of_draft(artifact: Artifact, figures: Mapping[str, bytes]) -> list[Section]:
    return training.sections(artifact.counts, figures)


def _of_scores(artifact: Artifact, figures: Mapping[str, bytes]) -> list[Section]:
    return score_page.sections(read_scores(artifact.path(SCORES)), figures)


def _of_speed(artifact: Artifact, figures: Mapping[str, bytes]) -> list[Section]:
    return speed_page.sections(read_speed(artifact.path(SPEED)), figures)


_SHOWN: Mapping[str, Callable[[Artifact, Mapping[str, bytes]], list[Section]]] = {
    "draft": _of_draft,
    "scores": _of_scores,
    "speed": _of_speed,
}
"""Kind -> the parts of its page that no other kind has."""
