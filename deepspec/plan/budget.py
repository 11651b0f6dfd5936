"""From a plan to its cost, and the refusal where the cost does not fit."""

import math
from pathlib import Path
from typing import Any

from deepspec.cache.measured import AnswerCounts
from deepspec.errors import BudgetError
from deepspec.formats.recipe import TRAITS
from deepspec.plan import presets, words
from deepspec.plan.cost.estimate import GUESS, estimate
from deepspec.plan.cost.found import Costs
from deepspec.plan.cost.given import Hardware, Sizes, Workload
from deepspec.plan.cost.table import rows, several, size
from deepspec.plan.layers import count_of
from deepspec.plan.plan import Limits, Plan
from deepspec.prepare.demo import BENCHMARKS as DEMO_BENCHMARKS
from deepspec.prepare.resolve import DEMO
from deepspec.ranges import Range
from deepspec.store import Store
from deepspec.target_cache.sizes import BF16_BYTES, CODEC_RATIO, Captured

UNKNOWN_SAMPLES = 10_000
"""Assumed where prompts come from somewhere that cannot be counted offline."""

SPARE = 1.05
"""Share of the estimate that must be free: file systems want some air."""


def plan_estimate(
    plan: Plan, sizes: Sizes | None = None, measured: AnswerCounts | None = None, hardware: Hardware | None = None
) -> Costs | None:
    """Return what a plan costs, or None where nothing is known of the target's sizes.

    Args:
        plan: what to do.
        sizes: of the target, read from its config; None: those of the preset.
        measured: counts of the published answers; None: there are none yet.
        hardware: where; None: the plan's own.
    """
    known = sizes or plan.target.sizes
    if known is None:
        return None
    work = workload(plan, known, measured)
    return estimate(known, work, hardware or presets.hardware(plan.limits.hardware))


def workload(plan: Plan, sizes: Sizes, measured: AnswerCounts | None = None) -> Workload:
    """Return the counts of a plan: guessed, or those of its answers where they exist."""
    train, draft = plan.train, plan.train.draft
    what = _guessed(plan, sizes) if measured is None else _counted(plan, sizes, measured)
    per_pass = max(1, what.samples // train.global_batch)
    return Workload(
        captured=what,
        codec=plan.cache.codec,
        ratios={**CODEC_RATIO, **(measured.ratios if measured else {})},
        source=train.source,
        keep_states=train.keep_states,
        with_answers=_with_answers(plan, what),
        passes=train.steps / per_pass if train.steps else train.epochs,
        draft_layers=draft.num_layers or TRAITS[draft.algorithm].num_layers,
        anchors=train.objective.num_anchors if TRAITS[draft.algorithm].masked else plan.cache.max_length,
        block=draft.block_size if TRAITS[draft.algorithm].masked else train.objective.ttt_length,
        refiner_rank=draft.xpress_rank if TRAITS[draft.algorithm].refined else 0,
        greedy=greedy_count(plan),
        looks=train.looks(train.steps or math.ceil(train.epochs * per_pass)),
        walked=train.walked_tokens,
        draft_vocabulary=draft.draft_vocab_size,
        questions=question_count(plan) + plan.evaluate.calibration_samples * len(plan.evaluate.temperatures),
        alone=_alone(plan),
        prompt_tokens=plan.dataset.prompt_tokens,
        question_tokens=plan.evaluate.max_new_tokens,
        weight_bytes=4 if plan.evaluate.dtype == "float32" else 2,
    )


def _with_answers(plan: Plan, what: Captured) -> float:
    """Return the share of a cache's states that come with the answers, and are kept until it has them."""
    if not plan.cache.while_answering:
        return 0.0
    return 1.0 if plan.cache.keep_states is None else min(1.0, plan.cache.keep_states / max(_came(what), 1))


def _came(what: Captured) -> float:
    """Return the bytes of the states of all layers and the last, as an engine gives them."""
    return what.tokens.mid * (what.layers + 1) * what.hidden * BF16_BYTES


def answering_lines(plan: Plan, sizes: Sizes | None = None, measured: AnswerCounts | None = None) -> tuple[str, ...]:
    """Return what it saves and what it costs that states come with the answers, in words; nothing where they do not."""
    known = sizes or plan.target.sizes
    apart = plan.but(cache=plan.cache.but(while_answering=False, keep_states=None))
    cost, without = plan_estimate(plan, sizes, measured), plan_estimate(apart, sizes, measured)
    if not plan.cache.while_answering or known is None or cost is None or without is None:
        return ()
    work = workload(plan, known, measured)
    room = (work.captured.layers + 1) * known.hidden / (2 * known.layers * known.kv_heads * known.head_dim)
    return words.while_answering((cost, without), room, _came(work.captured), work.with_answers)


def _guessed(plan: Plan, sizes: Sizes) -> Captured:
    samples = sample_count(plan)
    answered = samples * min(plan.dataset.answer_tokens, plan.regenerate.sampling.max_tokens)
    supervised = Range.around(answered, GUESS)
    return Captured(
        samples=samples,
        tokens=Range.around(answered + samples * plan.dataset.prompt_tokens, GUESS),
        supervised=supervised,
        last_rows=supervised.plus(Range.around(samples)),  # and the position before each answer
        **_form(plan, sizes),
    )


def _counted(plan: Plan, sizes: Sizes, measured: AnswerCounts) -> Captured:
    counts = measured.model_dump(include={"samples", "tokens", "supervised", "last_rows"})
    return Captured(**counts, **_form(plan, sizes))


def _form(plan: Plan, sizes: Sizes) -> dict[str, int]:
    return {"layers": count_of(plan), "hidden": sizes.hidden, "part_bytes": plan.cache.part_bytes}


def sample_count(plan: Plan) -> int:
    """Return how many prompts a plan asks: stated, counted in local files, or assumed; never above `max_samples`."""
    if plan.draft is not None:
        return 0
    counted = [_lines(Path(path).expanduser()) for path in plan.dataset.sources]
    known = plan.dataset.samples or (sum(filter(None, counted)) if counted and all(counted) else UNKNOWN_SAMPLES)
    return min(known, plan.prepare.max_samples or known)


def greedy_count(plan: Plan) -> int:
    """Return how many held-out prompts are answered once more, greedily: no more than are held out."""
    return min(plan.greedy_samples, math.ceil(sample_count(plan) * plan.prepare.splits.validation))


def question_count(plan: Plan) -> int:
    """Return how many questions an evaluation asks, all benchmarks and temperatures together."""
    folder = plan.dataset.benchmarks_dir
    if folder is None:
        return plan.evaluate.questions()
    files = sorted((DEMO_BENCHMARKS if folder == DEMO else Path(folder)).glob("*.jsonl"))
    sizes = [_lines(path) or 0 for path in files]
    return sum(min(size, plan.evaluate.samples or size) for size in sizes) * len(plan.evaluate.temperatures)


def _alone(plan: Plan) -> int:
    """Return how many questions an evaluation decodes token by token: with an untrained draft, and without one."""
    return plan.evaluate.untrained_samples + plan.evaluate.lossless_samples


def plan_counts(plan: Plan, store: Store, measured: AnswerCounts | None = None) -> tuple[str, ...]:
    """Return what a plan rests on, in words: samples, how their length is known, and the space found."""
    free = store.free_bytes()
    count = sample_count(plan) if measured is None else measured.samples
    how = "lengths are guessed, ± 30 %" if measured is None else f"counted in {several(measured.rows, 'answer')}"
    greedy = greedy_count(plan)
    held_out = f"{several(greedy, 'held-out prompt')} {'is' if greedy == 1 else 'are'} answered at temperature 0, too"
    counts = (several(count, "sample"), several(question_count(plan), "question"))
    return (
        f"{counts[0]}, {how}{f'; about {held_out}' if greedy else ''}; {counts[1]}; rates of the machine are those of "
        "its preset",
        f"free in the store: {'no limit known' if free is None else size(free)}",
    )


def plan_lines(plan: Plan, store: Store, sizes: Sizes | None = None) -> tuple[str, ...]:
    """Return what a plan is and what it comes to, in lines for the page of its run."""
    cost, name = plan_estimate(plan, sizes), plan.limits.hardware
    expected = () if cost is None else words.headline(name, cost, plan.train.source, store.free_bytes(), plan.cache)[:1]
    counts = (*plan_counts(plan, store), *answering_lines(plan, sizes))
    return f"{plan.target.name} × {plan.train.draft.algorithm}", *expected, *counts


def plan_rows(
    plan: Plan, store: Store, sizes: Sizes | None = None, measured: AnswerCounts | None = None
) -> list[dict[str, Any]]:
    """Return the cost of a plan and the space found, as a table for people."""
    cost = plan_estimate(plan, sizes, measured)
    count = sample_count(plan) if measured is None else measured.samples
    what = "samples" if measured is None else f"samples, counted in {measured.rows:,} answers"
    samples = {"what": what, "estimate": f"{count:,}", "low": "", "high": ""}
    found = store.free_bytes()
    free = {
        "what": "free in the store",
        "estimate": "unlimited" if found is None else size(found),
        "low": "",
        "high": "",
    }
    if cost is None:
        unknown = {"what": "sizes of the target", "estimate": "unknown until it is read", "low": "", "high": ""}
        return [samples, unknown, free]
    return [samples, *rows(cost), free]


def check_limits(
    plan: Plan, store: Store, sizes: Sizes | None = None, measured: AnswerCounts | None = None, held: int = 0
) -> None:
    """Stop where the estimate passes a limit of the plan or the free space of the store.

    Args:
        plan: what to do.
        store: where to.
        sizes: of the target; None: those of its preset.
        measured: counts of the published answers; None: there are none yet.
        held: bytes of it that the store holds already.

    Raises:
        BudgetError: what was estimated, what there is, and which settings make it smaller.
    """
    cost = plan_estimate(plan, sizes, measured)
    told = None if cost is None else passed_limit(plan.limits, cost, store, held)
    if told is not None:
        raise BudgetError(f"the plan {told}")


def passed_limit(limits: Limits, cost: Costs, store: Store, held: int = 0) -> str | None:
    """Return which limit an estimate passes, or how much space it lacks, and what makes it smaller; None: none.

    Args:
        limits: of the plan.
        cost: of the plan on one machine.
        store: where to.
        held: bytes of it that the store holds already.
    """
    free = store.free_bytes()
    wanted = cost.store_bytes.mid * SPARE
    smaller = (
        "store no states (train.source=online with cache.codec=none) or half of them (cache.codec=fp8), or take fewer "
        "samples (prepare.max_samples)"
    )
    if free is not None and wanted - held > free:
        more = f", {size(held)} of it there already" if held else ""
        return f"needs about {size(wanted)} in {store.root}{more}, which has {size(free)} free; {smaller}"
    if limits.disk_gb is not None and wanted > limits.disk_gb * 1e9:
        return f"needs about {size(wanted)}, above limits.disk_gb={limits.disk_gb:g}; {smaller}"
    hours = math.fsum(value.mid for value in cost.hours.values())
    if limits.hours is not None and hours > limits.hours:
        return f"needs about {hours:.1f} hours, above limits.hours={limits.hours:g}; train less"
    if limits.money is not None and cost.money.mid > limits.money:
        return f"costs about {cost.money.mid:,.0f} USD, above limits.money={limits.money:g}"
    return None


def _lines(path: Path) -> int | None:
    if not path.is_file() or path.suffix != ".jsonl":
        return None
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
