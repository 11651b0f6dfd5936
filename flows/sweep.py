"""Several drafts that differ in some settings: what they share is made once, and the best is at the top."""

from prefect import flow
from pydantic import Field

from deepspec.artifacts import Spec, read_manifest
from deepspec.errors import SpecError, TrainingError
from deepspec.plan.checks import examine
from deepspec.store import Store
from flows.chain import tags_of
from flows.choices import Choices
from flows.draft import Built, try_draft
from infra.known import known, settled
from infra.site import Site
from tasks.cancel import cancel_with_parent
from tasks.run import label_run, show_table


class Variant(Spec):
    """One row of a sweep."""

    name: str = Field(min_length=1)
    changes: tuple[str, ...] = ()
    """section.field=value each, on top of what all variants share."""


@flow(
    name="sweep",
    flow_run_name="sweep-{choices.label}",
    persist_result=False,
    on_cancellation=[cancel_with_parent],
    on_crashed=[cancel_with_parent],
)
def sweep(choices: Choices, site: Site, variants: tuple[Variant, ...]) -> list[dict[str, str]]:
    """Train and measure every variant, one after the other; a variant that fails does not end the others.

    Args:
        choices: what all variants share.
        site: where to run.
        variants: what they differ in.

    Raises:
        SpecError: there is nothing to compare, or two variants have one name.
        DeepSpecError: one of them cannot be run, see `deepspec.plan.checks`; none is trained then.
        TrainingError: a variant failed; the leaderboard has all that did not.
    """
    if len({variant.name for variant in variants}) < max(2, len(variants)):
        raise SpecError(f"{len(variants)} variants; wanted two or more, each with a name of its own")
    label_run(tags_of(choices.plan()))
    changed = {each.name: choices.but(overrides=(*choices.overrides, *each.changes)) for each in variants}
    for every in changed.values():  # before the first one is trained
        examine(known(every.plan(), settled(site)[0]))
    found = {name: _try(every, site, name) for name, every in changed.items()}
    board = leaderboard({name: _scores(site, built) for name, built in found.items() if built is not None})
    show_table("leaderboard", board, "accepted length with bonus; the longest first")
    failed = [name for name, built in found.items() if built is None]
    if failed:
        raise TrainingError(f"variants {', '.join(failed)} failed, see their runs; retry this one to go on with them")
    return board


def _try(choices: Choices, site: Site, name: str) -> Built | None:
    state = try_draft.with_options(flow_run_name=name)(choices, site, return_state=True)
    return state.result() if state.is_completed() else None


def leaderboard(scores: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    """Return variants in the order of their first score, the longest accepted length first, those without one last."""
    ordered = sorted(scores.items(), key=lambda item: -next(iter(item[1].values()), 0.0))
    return [
        {"variant": name, **{f"temperature {float(t):g}": f"{value:.3f}" for t, value in row.items()}}
        for name, row in ordered
    ]


def _scores(site: Site, built: Built) -> dict[str, float]:
    ref = built.steps[-1].ref
    manifest = read_manifest(Store(site.root), ref.kind, ref.address)
    return {} if manifest is None else dict(manifest.counts["accepted_length"])
