"""The target's context: what is cut, what has no room, and which questions of the benchmarks are too long."""

from collections.abc import Iterator
from pathlib import Path

from deepspec.chat.template import ChatTemplate
from deepspec.errors import SourceError, SpecError
from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.questions import BenchmarkQuestion, read_questions
from deepspec.formats.recipe import TRAITS, drafts
from deepspec.lines.bad_rows import one_row
from deepspec.plan import resolve
from deepspec.plan.known import Known
from deepspec.plan.rules.seen import LATER, Seen

SQUARE = 1 << 28
"""Entries of a mask of positions by positions, a byte each, from which on a plan tells of it: 16,384 tokens."""


def context(known: Known) -> Seen:
    """Hold every length of the plan against the positions of the target.

    Answers that leave no room for a prompt are told, not refused, where only an earlier stage is made.
    """
    if known.target is None:
        return LATER
    positions = known.target.shape.max_positions
    full = {stage: _full(known, stage, positions) for stage in ("evaluate", "benchmark") if _room(known, stage) < 1}
    for stage, message in full.items():
        if known.makes(stage):
            raise SpecError(message)
    _check_served(known, positions)
    most = _room(known, "evaluate")
    far = [
        f"evaluate.contexts {each}: the target has room for prompts of {most} tokens; its questions are not asked"
        for each in known.plan.evaluate.contexts
        if each > most and "evaluate" not in full
    ]
    later = [f"{message} before {stage}" for stage, message in full.items() if known.only != "reevaluate"]
    return Seen(f"{positions:,} positions", (*_cut(known, positions), *later, *far))


def benchmarks(known: Known) -> Seen:
    """Read the questions of local benchmarks, and hold those against the context that could be too long for it."""
    if known.plan.dataset.benchmarks_dir is None:
        return Seen("on the hub: read by evaluate")
    options, found = known.plan.evaluate, resolve.benchmarks_of(known.plan)
    counts: list[str] = []
    told: list[str] = []
    for each in found.benchmarks:
        place = found.locations[each.digest]
        questions = read_questions(each, place, options.samples, options.seed)
        if not questions:
            raise SourceError(f"benchmark {each.name} holds no question", Path(place))
        counts.append(f"{each.name} {len(questions)}")
        if known.makes("evaluate") and known.target is not None and known.chat is not None:
            told += _too_long(each, questions, known.chat, _room(known, "evaluate"), options.thinking)
    return Seen(", ".join(counts), tuple(told))


def _room(known: Known, stage: str) -> int:
    """Return the most tokens of a prompt, beside an answer of `evaluate` or `benchmark` and a last proposal."""
    positions = 0 if known.target is None else known.target.shape.max_positions
    return positions - _answer(known, stage) - _slots(known, stage) - 1


def _check_served(known: Known, positions: int) -> None:
    serve = known.plan.benchmark.serve
    if known.makes("benchmark") and serve.wanted and serve.room >= positions:
        raise SpecError(
            f"the target reads {positions} tokens, benchmark.serve asks for prompts of "
            f"{max(serve.contexts, default=1)} and answers of {serve.max_tokens}; lower contexts or max_tokens of it"
        )


def _full(known: Known, stage: str, positions: int) -> str:
    return (
        f"the target reads {positions} tokens, {stage}.max_new_tokens is {_answer(known, stage)} and "
        f"{_slots(known, stage) + 1} more are kept for a proposal: no prompt has room; lower it"
    )


def _too_long(
    benchmark: Benchmark, questions: list[BenchmarkQuestion], chat: ChatTemplate, most: int, thinking: bool
) -> Iterator[str]:
    """Tell how many questions have no room. No token is shorter than a byte, so short texts are not tokenised."""

    def length(text: str) -> int:
        with one_row("template", sample=f"of benchmark {benchmark.name}"):
            return len(chat.prompt_ids([{"role": "user", "content": text}], thinking=thinking))

    frame = length("x")
    texts = [each.turns[0] for each in questions]
    long = [text for text in texts if frame + len(text.encode()) > most and length(text) > most]
    if len(long) == len(texts):
        raise SourceError(
            f"benchmark {benchmark.name}: none of its {len(texts)} questions fits the {most} tokens that the target "
            "has for a prompt beside the answer; lower evaluate.max_new_tokens, or leave it out (dataset.benchmarks)"
        )
    if long:
        yield (
            f"benchmark {benchmark.name}: {len(long)} of {len(texts)} questions are longer than the {most} tokens that "
            "the target has for a prompt; they are not asked"
        )


def _cut(known: Known, positions: int) -> Iterator[str]:
    plan = known.plan
    if plan.draft is not None or plan.dataset.cache is not None:
        return
    if plan.cache.max_length > positions:
        yield (
            f"the target reads {positions} tokens, cache.max_length is {plan.cache.max_length}: samples are cut at "
            f"{positions} and counted"
        )
    square = min(plan.cache.max_length, positions) ** 2
    if known.placement.device == "cpu" and not TRAITS[plan.train.draft.algorithm].blocks and square > SQUARE:
        yield (
            f"cache.max_length is {plan.cache.max_length}: on a CPU a step of {plan.train.draft.algorithm} on a sample "
            f"as long holds masks of {square / 1e9:.1f} GB and more; lower it, or train a block draft"
        )
    if plan.dataset.answers is None and plan.regenerate.sampling.max_tokens >= positions:
        yield (
            f"the target reads {positions} tokens, regenerate.sampling.max_tokens is "
            f"{plan.regenerate.sampling.max_tokens}: the engine cuts answers earlier"
        )


def _answer(known: Known, stage: str) -> int:
    return (known.plan.evaluate if stage == "evaluate" else known.plan.benchmark).max_new_tokens


def _slots(known: Known, stage: str) -> int:
    """Return how many tokens are proposed at a time."""
    chosen = (known.plan.evaluate if stage == "evaluate" else known.plan.benchmark).slots
    if chosen is not None:
        return chosen
    if known.draft is not None:
        return known.draft.drafts
    train = known.plan.train
    return drafts(train.draft, train.objective)
