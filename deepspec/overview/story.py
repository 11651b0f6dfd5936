"""The story of a run, top to bottom: what it would cost, its stages, the curve, the scores, where it pays."""

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec.artifacts import Artifact
from deepspec.overview.page import Page, shown
from deepspec.page.page import Section

_TOLD = {
    "draft": ("While it was trained",),
    "scores": ("Acceptance", "By position"),
    "speed": ("Speed", "Expected speed-up by load", "Served by an engine", "Served under load"),
}
"""Kind -> the parts of its page that the story has, in the order in which it is told."""


def story(title: str, plan: Sequence[str], stages: Sequence[Mapping[str, Any]], artifacts: Sequence[Artifact]) -> Page:
    """Return the story of a run as far as it has come.

    Args:
        title: of the run.
        plan: what was expected, in lines.
        stages: a row for each stage that is done.
        artifacts: what they made.
    """
    made = {artifact.manifest.kind: artifact for artifact in artifacts}
    parts = [
        section
        for kind, titles in _TOLD.items()
        if kind in made
        for section in shown(made[kind])
        if section.title in titles
    ]
    where = [f"Artifacts lie in {artifacts[0].store.root}."] if artifacts else []
    begun = [Section(title="Plan", texts=plan)] if plan else []
    warnings = made["release"].counts.get("warnings", ()) if "release" in made else ()
    return Page(
        title=title,
        warnings=list(warnings),
        sections=[*begun, Section(title="Stages", texts=where, rows=list(stages)), *parts],
    )
