"""Answers that are published already, counted for a plan: numbers instead of guesses."""

from dataclasses import dataclass

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.cache.measured import AnswerCounts
from deepspec.errors import SourceError
from deepspec.plan.cost.given import Sizes
from deepspec.plan.known import Known
from deepspec.plan.resolve import Resolved, resolve, sizes_of
from deepspec.stages import find_fresh, stage_named
from deepspec.store import Store
from infra.settings import scratch_dir

PILOT_PARAMETERS = 1e9
"""Targets up to this size run over a few samples, which tells how well their states compress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedPlan:
    """What a plan is made with, as far as it is on this machine."""

    sizes: Sizes | None = None
    resolved: Resolved | None = None
    measured: AnswerCounts | None = None
    """Counts of the answers, where there are some."""
    missing: str = ""
    """What the plan was made without."""


def counted(seen: Known, hardware: str) -> CountedPlan:
    """Return what a plan's specs and its published answers say; a plan is also made without prompts that are far away.

    Args:
        seen: the plan, once every check of it has passed.
        hardware: fingerprint of what the benchmark's times would be measured on.
    """
    if seen.files is None or seen.target is None:
        return CountedPlan()
    plan, files, sizes = seen.plan, seen.files, sizes_of(seen.target)
    try:
        resolved = resolve(plan, files, scratch_dir() / "hashes.json", hardware)
    except SourceError as error:
        return CountedPlan(sizes=sizes, missing=f"planned without what cannot be reached: {error}")
    answers = _answers(resolved, seen.store)
    if answers is None:
        return CountedPlan(sizes=sizes, resolved=resolved)
    from deepspec.cache.measure import (
        measure_answers,
    )  # loads torch, and takes seconds: only where there is something to count
    from deepspec.target.load import load_target, load_template

    small = sizes.parameters <= PILOT_PARAMETERS
    target = load_target(files.folder, plan.cache.dtype) if small else None
    template = load_template(files.folder) if target is None else target.template
    artifact = open_artifact(seen.store, answers, scratch_dir())
    return CountedPlan(sizes=sizes, resolved=resolved, measured=measure_answers(artifact, template, plan.cache, target))


def _answers(resolved: Resolved, store: Store) -> ArtifactRef | None:
    given: dict[str, ArtifactRef] = {}
    if "prepare" not in resolved.specs:
        return None
    for name in ("prepare", "regenerate"):
        stage = stage_named(name)
        found = find_fresh(stage, resolved.specs[name], given, store)
        if found is None:
            return None
        given[stage.kind] = found
    return given["answers"]
