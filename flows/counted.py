"""Answers that are published already, counted for a plan: numbers instead of guesses."""

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.errors import SourceError
from deepspec.plan.estimate import Sizes
from deepspec.plan.measured import Measured
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import Resolved, resolve
from deepspec.stages import find_fresh, stage_named
from deepspec.store import Store
from deepspec.target.source import find_target
from infra.settings import models_dir, scratch_dir
from infra.work import Site

PILOT_PARAMETERS = 1e9
"""Targets up to this size run over a few samples, which tells how well their states compress."""


def counted(plan: Plan, site: Site) -> tuple[Sizes | None, Measured | None]:
    """Return the sizes of the target and the counts of a plan's answers; None for what is not on this machine yet."""
    files = find_target(plan.target, models_dir(), plan.target.name)
    if files is None:
        return None, None
    try:
        resolved = resolve(plan, files, scratch_dir() / "hashes.json")
    except SourceError:  # prompts on a hub that cannot be reached: a plan is made without them
        return None, None
    store = Store(site.root)
    answers = _answers(resolved, store)
    if answers is None:
        return resolved.sizes, None
    from deepspec.cache.measure import measure  # loads torch, and takes seconds: only where there is something to count
    from deepspec.target.load import load_target, load_template

    small = resolved.sizes.parameters <= PILOT_PARAMETERS
    target = load_target(files.folder, plan.cache.dtype) if small else None
    template = load_template(files.folder) if target is None else target.template
    artifact = open_artifact(store, answers, scratch_dir())
    return resolved.sizes, measure(artifact, template, plan.cache, target)


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
