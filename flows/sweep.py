"""Several drafts that differ in some settings: what they share is made once, and the best is at the top."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Literal, get_args

from prefect import flow

from deepspec.artifacts import Manifest, open_artifact, read_manifest, reference
from deepspec.errors import SpecError, TrainingError
from deepspec.formats.recipe import drafts
from deepspec.formats.speed import SPEED, read_speed
from deepspec.plan.checks import examine
from deepspec.plan.plan import Plan
from deepspec.store import Store
from deepspec.sweep.board import Board, Cost, Trial, trial_of
from deepspec.sweep.race import Race
from deepspec.sweep.variants import SweepTerms, Variant
from flows.chain import tags_of
from flows.choices import Choices
from flows.draft import Built, try_draft
from infra.known import known, settled
from infra.listeners import terminal
from infra.site import Site
from tasks.cancel import cancel_with_parent
from tasks.run import label_run, show_table

By = Literal["walked", "decoded"]
Last = Literal["train", "evaluate", "benchmark"]
UNTOLD: Mapping[By, str] = {
    "walked": (
        "its draft tells no accepted length, for too few of the held-out tokens are known to be the target's own; "
        "with --by decoded the same sweep takes the draft as it is"
    ),
    "decoded": "its scores tell no accepted length",
}
"""What is said of a row that nothing can be judged by."""
LASTS: tuple[Last, ...] = get_args(Last)


@flow(
    name="sweep",
    flow_run_name="sweep-{choices.label}",
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def sweep(
    choices: Choices,
    site: Site,
    variants: tuple[Variant, ...],
    terms: SweepTerms = SweepTerms(),  # noqa: B008 - frozen
    tolerant: bool = False,
) -> Board:
    """Train every variant from every seed, and return the leaderboard; what is published is not made again.

    All variants are trained from one seed, then from the next. One that is worse than the best by more than
    seeds explain gets no further seeds. One that fails does not end the others.

    Args:
        choices: what all variants share.
        site: where to run.
        variants: what they differ in; the others are held against the first.
        terms: seeds, what they have the same of, and what they are judged by.
        tolerant: return a leaderboard even where some failed.

    Raises:
        SpecError: there is nothing to compare, or nothing to judge by, or two variants have one name.
        DeepSpecError: one of them cannot be run, see `deepspec.plan.checks`; none is trained then.
        TrainingError: a variant failed; the leaderboard has all that did not.
    """
    label_run(tags_of(choices.plan))
    changed = checked_rows(choices, site, variants, terms.by)  # before the first one is trained
    first = choices.plan.train.seed
    if terms.equal == "seconds":
        paced = Race(list(changed), partial(_trained, changed, site, terms.by))
        paced.run(first)
        steps = paced.steps_at_equal_seconds()
        changed = {name: _with(every, f"train.steps={steps[name]}") for name, every in changed.items()}
    race = Race(list(changed), partial(_trained, changed, site, terms.by))
    for seed in range(first, first + terms.seeds):
        race.run(seed)
        if terms.timed and seed == first:
            shapes = {name: _shape(every.plan) for name, every in changed.items()}
            race.time(shapes, partial(_round_cost, changed, site))
        if not terms.all_seeds:
            race.leave_behind()
        _show(race.board(terms.equal))
    board = race.board(terms.equal)
    if board.failed and not tolerant:
        raise TrainingError(board.failures())
    return board


def _trained(changed: Mapping[str, Choices], site: Site, by: By, name: str, seed: int) -> Trial | str:
    """Return what came of a row; in words, why nothing did."""
    found = _made(changed[name], site, name, seed, "train" if by == "walked" else "evaluate")
    if isinstance(found, str):
        _tell(f"{name}, seed {seed}: failed")
        return found
    draft, *scores = found.values()
    trial = trial_of(seed, draft.address, draft.counts, scores[0].counts if scores else None)
    told = "no accepted length" if trial is None else f"accepted length {trial.accepted_length:.3f}"
    _tell(f"{name}, seed {seed}: {told}, {draft.counts['steps']} steps")
    return trial or UNTOLD[by]


def _round_cost(changed: Mapping[str, Choices], site: Site, name: str, seed: int) -> Cost | str:
    """Return what a round takes, at the first batch size of the plan; in words, why its run failed."""
    found = _made(changed[name], site, name, seed, "benchmark")
    if isinstance(found, str):
        return found
    made = open_artifact(Store(site.root), reference(Store(site.root), found["benchmark"]), site.placement.scratch)
    batch = read_speed(made.path(SPEED)).batches[0]
    return Cost(value=batch.round_cost, spread=batch.spread)


def _made(choices: Choices, site: Site, name: str, seed: int, last: Last) -> Mapping[Last, Manifest] | str:
    """Return the manifests of a row by stage, from `train` on; in words, why its run failed."""
    run = try_draft.with_options(flow_run_name=f"{name}, seed {seed}, {last}")
    state = run(_with(choices, f"train.seed={seed}"), site, last, return_state=True)
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        return str(error) or type(error).__name__
    built: Built = state.result()
    store = Store(site.root)
    found = {step.stage: read_manifest(store, step.ref.kind, step.ref.address) for step in built.steps}
    made = {stage: manifest for stage, manifest in found.items() if stage in LASTS and manifest is not None}
    return made if last in made else f"it made no {last}"


def _tell(line: str) -> None:
    """Say a line on the terminal, where one is attached."""
    for report in terminal("sweep"):
        report.log(line)


def checked_rows(choices: Choices, site: Site, variants: tuple[Variant, ...], by: By) -> dict[str, Choices]:
    """Return name -> what each variant is, once every one of them can be trained and judged.

    Raises:
        DeepSpecError: as `sweep` does before it trains.
    """
    changed = _changed(choices, variants)
    for every in changed.values():
        _check(every.plan, site, by)
    return changed


def _changed(choices: Choices, variants: tuple[Variant, ...]) -> dict[str, Choices]:
    """Return name -> what each variant is.

    Raises:
        SpecError: there are too few, or two have one name.
    """
    names = Counter(variant.name for variant in variants)
    if len(names) < max(2, len(variants)):
        shared = [f"; {name!r} is the name of {count}" for name, count in names.items() if count > 1]
        raise SpecError(f"{len(variants)} variants; wanted two or more, each with a name of its own{''.join(shared)}")
    return {
        each.name: _with(choices.but(algorithm=each.algorithm or choices.algorithm), *each.changes) for each in variants
    }


def _with(choices: Choices, *changes: str) -> Choices:
    return choices.but(overrides=(*choices.overrides, *changes))


def _check(plan: Plan, site: Site, by: By) -> None:
    """Check that a variant can be trained and judged.

    Raises:
        DeepSpecError: it cannot.
    """
    examine(known(plan, settled(site)[0]))
    if plan.draft is not None:
        raise SpecError("a sweep trains its drafts; leave out --draft (deepspec compare holds scores together)")
    none_held_out = plan.dataset.cache is None and plan.prepare.splits.validation == 0
    if by == "walked" and (plan.train.validation_samples == 0 or plan.train.walked_tokens == 0 or none_held_out):
        raise SpecError(
            "a sweep goes by the accepted length over held-out answers; set train.validation_samples, "
            "train.walked_tokens and prepare.splits.validation above 0, or let it go by what is decoded (--by decoded)"
        )


def _shape(plan: Plan) -> str:
    """Return what a round's time hangs on, where target and machine are the same."""
    train = plan.train
    return json.dumps([train.draft.identity(), drafts(train.draft, train.objective)], sort_keys=True)


def _show(board: Board) -> None:
    """Show the leaderboard beside the run."""
    show_table("leaderboard", board.rows(), f"accepted length with bonus at equal {board.equal}; the best first")
    kinds = board.kinds_rows()
    if kinds:
        show_table("leaderboard-kinds", kinds, "accepted length with bonus by kind of prompt")
