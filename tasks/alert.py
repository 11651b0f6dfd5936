"""Telling whoever listens that a draft has become worse."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.formats.scores import SCORES, Scores, read_scores
from deepspec.store import Store
from infra.site import Site

REGRESSED = "deepspec.eval.regressed"


@task(name="announce", task_run_name="announce", tags=["deepspec"], cache_policy=NO_CACHE, persist_result=False)
def announce(ref: ArtifactRef, site: Site) -> tuple[str, ...]:
    """Emit `deepspec.eval.regressed` with the evidence where scores are worse than their baseline; return how."""
    scores = read_scores(open_artifact(Store(site.root), ref, site.placement.scratch).path(SCORES))
    worse = scores.comparison.regressions if scores.comparison is not None else ()
    if worse:
        emit_event(REGRESSED, resource=resource(scores), payload=evidence(scores, ref))
    return worse


def resource(scores: Scores) -> dict[str, str]:
    """Return what the event is about: the draft."""
    return {
        "prefect.resource.id": f"deepspec.draft.{scores.draft}",
        "prefect.resource.name": f"{scores.algorithm} draft {scores.draft[:12]}",
    }


def evidence(scores: Scores, ref: ArtifactRef) -> dict[str, object]:
    """Return what the event says: how it is worse, by how much, and where the whole report lies."""
    comparison = scores.comparison
    return {
        "regressions": list(comparison.regressions) if comparison else [],
        "differences": [each.row() for each in comparison.differences] if comparison else [],
        "baseline": comparison.baseline if comparison else None,
        "scores": ref.uri,
        "draft": scores.draft,
        "target": scores.target,
    }
