"""Does an engine serve what was evaluated: the same target, with the draft, which it accepts as often as we do?

Prompts that were decoded here at temperature 0 are asked one after another, so that counters between two looks are of
one answer. What was accepted is told by the engine itself: llama.cpp's server with each answer, vLLM's in its counters.

Three comparisons, each finer than the one before. Tokens per round there and here, as two intervals. Their difference,
on the same prompts: prompts differ more than engines do. And where an engine gives the very answer that was decoded
here, the rounds that it took: greedy rounds over the same tokens are the same ones, whatever computes them, so another
draft shows though it is accepted as often.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepspec.errors import EngineError
from deepspec.formats.engine_speed import EngineSpeed
from deepspec.formats.numbers import Interval, interval, overlap
from deepspec.placement import Endpoint
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import Floats, estimates, resampled, tally
from deepspec.serving.client import Request, ServedAnswer, ServingClient
from deepspec.serving.numbers import tokens_per_round, with_rounds

ROUNDING = 0.02
"""Share of the tokens per round that engines may differ by: they compute in other precisions."""
OTHERWISE = 0.02
"""Share of the rounds over the same answers that may be others: two tokens of a draft may be as likely as each other.
"""
ENOUGH = 3
"""Answers by which it is told whether an engine serves the target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedPrompt:
    """A prompt, and what decoding here made of it at temperature 0."""

    prompt: Sequence[int]
    decoded: Decoded
    begins: str = ""
    """Text with which the target's answer begins; empty: it is not looked at."""
    text: str = ""
    """Of the whole answer, a stop token's included; empty: whether an engine gives the same one is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedShape:
    """What engines tell of a target, to be held against what they serve."""

    name: str
    hidden_size: int


def check_engine(
    drafting: Endpoint, plain: Endpoint | None, asked: Sequence[DecodedPrompt], max_tokens: int
) -> EngineSpeed:
    """Ask an engine prompts that were decoded here at temperature 0, and hold what it accepts against ours.

    Args:
        drafting: serves target and draft.
        plain: serves the target alone, on the same machine; None: no speed-up is told.
        asked: at least one.
        max_tokens: of an answer, as here.

    Raises:
        EngineError: it cannot be reached, refuses, or tells nothing about a draft.
    """
    return asyncio.run(_check(drafting, plain, asked, max_tokens))


async def _check(
    drafting: Endpoint, plain: Endpoint | None, asked: Sequence[DecodedPrompt], max_tokens: int
) -> EngineSpeed:
    async with ServingClient(drafting) as client:
        answers = await in_turn(client, asked, max_tokens)
        plains = []
        if plain is not None:
            async with ServingClient(plain) as alone:
                plains = await in_turn(alone, asked, max_tokens)
    if not sum(each.drafted for each in answers):
        raise EngineError(f"engine {drafting.url} drafted nothing; start it with the draft, or check that it loaded it")
    found = against_ours(client.name, answers, plains, asked)
    if found is None:
        raise EngineError("the engine's answers are too short to measure; raise the number of tokens")
    return found


async def in_turn(client: ServingClient, asked: Sequence[DecodedPrompt], max_tokens: int) -> list[ServedAnswer]:
    """Return the answers to prompts that are asked one after another, with what was drafted and accepted for each.

    Raises:
        EngineError: the engine cannot be reached, or refuses.
    """
    before, answers = await client.counters(), []
    for each in asked:
        answer = await client.ask(Request(prompt=each.prompt, max_tokens=max_tokens, natural=True))
        now = None if before is None else await client.counters()
        counted = None if before is None or now is None else now.since(before)
        if counted is not None:
            answer = replace(answer, drafted=counted.drafted, accepted=counted.accepted, counted=counted.rounds)
        before = now or before
        answers.append(answer)
    return answers if before is not None else with_rounds(answers)


def against_ours(
    name: str, answers: Sequence[ServedAnswer], plains: Sequence[ServedAnswer], asked: Sequence[DecodedPrompt]
) -> EngineSpeed | None:
    """Return what an engine accepts against what we do; None where it took no round, or nothing was drafted.

    Args:
        name: of the engine.
        answers: with the draft.
        plains: without it; none: no speed-up is told.
        asked: the prompts of the answers.
    """
    theirs, drafted = tokens_per_round(answers), sum(each.drafted for each in answers)
    if theirs is None or not drafted:
        return None
    ours, more = _decoded_here(asked), _difference(answers, asked)
    count, otherwise = same_answers(answers, asked)
    return EngineSpeed(
        engine=name,
        samples=len(answers),
        tokens_per_round=theirs,
        ours=ours,
        accept_rate=sum(each.accepted for each in answers) / drafted,
        tokens_per_second=_speed(answers),
        plain_tokens_per_second=_speed(plains) if plains else None,
        difference=more,
        same_answers=count,
        otherwise=otherwise,
        agrees=overlap(theirs, ours) and not _apart(more, ours) and not _others(otherwise),
    )


def _difference(answers: Sequence[ServedAnswer], asked: Sequence[DecodedPrompt]) -> Interval:
    """Return how many more tokens a round makes in an engine than here, on the same prompts, resampled together.

    It is far narrower than the difference of two intervals: prompts differ more than engines do.
    """
    pairs = [(each, known.decoded) for each, known in zip(answers, asked, strict=True)]
    sums = np.array(
        [(each.tokens - 1, each.rounds, len(here.tokens) - 1, len(here.rounds)) for each, here in pairs],
        dtype=np.float64,
    )

    def more(weights: Floats) -> Floats:
        drawn = weights @ sums
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3], dtype=np.float64)

    return interval(resampled(more, len(pairs)))


def same_answers(answers: Sequence[ServedAnswer], asked: Sequence[DecodedPrompt]) -> tuple[int, Interval | None]:
    """Return how many answers are the very ones that were decoded here, and of them the share of the rounds that are
    others, at least: by how much the numbers of rounds are apart, resampled by prompt. None without such an answer.
    """
    pairs = [
        (abs(each.rounds - len(known.decoded.rounds)), max(each.rounds, len(known.decoded.rounds)))
        for each, known in zip(answers, asked, strict=True)
        if _is_same(each, known)
    ]
    if not pairs:
        return 0, None
    sums = np.array(pairs, dtype=np.float64)

    def share(weights: Floats) -> Floats:
        drawn = weights @ sums
        return np.asarray(drawn[:, 0] / drawn[:, 1], dtype=np.float64)

    return len(pairs), interval(resampled(share, len(pairs)))


def _is_same(answer: ServedAnswer, known: DecodedPrompt) -> bool:
    """Return whether an answer has the tokens that were decoded here; engines leave a stop token out of its text."""
    as_long = answer.tokens == len(known.decoded.tokens) and bool(known.decoded.rounds)
    return as_long and bool(answer.text) and known.text.startswith(answer.text)


def _others(otherwise: Interval | None) -> bool:
    """Return whether for certain more rounds are others than drafts that cannot decide make."""
    return otherwise is not None and otherwise.low is not None and otherwise.low > OTHERWISE


def _apart(found: Interval, ours: Interval) -> bool:
    """Return whether a difference is for certain more than rounding moves."""
    if found.low is None or found.high is None or ours.value is None:
        return False
    return found.high < -ROUNDING * ours.value or found.low > ROUNDING * ours.value


def _decoded_here(asked: Sequence[DecodedPrompt]) -> Interval:
    """Return the tokens that a round made when the prompts were decoded here."""
    decoded = [each.decoded for each in asked if each.decoded.rounds]
    slots = max(each.proposed for sample in decoded for each in sample.rounds)
    return interval(estimates(tally(decoded, slots))["tokens_per_round"])


async def check_served_target(client: ServingClient, shape: ServedShape) -> None:
    """Return where an engine serves a model of the name that it is asked for, and of the target's width.

    Raises:
        EngineError: it does not.
    """
    models, name = await client.models(), client.endpoint.model
    if name not in models:
        listed = ", ".join(models) or "no model"
        raise EngineError(f"engine {client.endpoint.url} serves {listed}, not {name!r}; correct --model")
    width = (models[name].get("meta") or {}).get("n_embd")
    if width is not None and width != shape.hidden_size:
        told = f"its hidden size is {width}, that of {shape.name} {shape.hidden_size}"
        raise EngineError(f"engine {client.endpoint.url} serves another target than the release is for: {told}")


async def started_without(client: ServingClient, options: Sequence[str]) -> list[str]:
    """Return which options, each with its value, an engine was started without, as far as it tells."""
    told = await client.options()
    names = {each: each.split()[0].removeprefix("--").replace("-", "_") for each in options}
    return [each for each, name in names.items() if name in told and str(told[name]) != each.split()[1]]


def check_answers(
    client: ServingClient, answers: Sequence[ServedAnswer], asked: Sequence[DecodedPrompt], name: str
) -> None:
    """Return where an engine answers as the target does: most answers begin alike.

    Rounding lets some begin otherwise, another target nearly all.

    Raises:
        EngineError: it does not.
    """
    pairs = [(each.text.strip(), known.begins.strip()) for each, known in zip(answers, asked, strict=True)]
    judged = [answer.startswith(begins) for answer, begins in pairs if begins]
    if len(judged) >= ENOUGH and 2 * sum(judged) < len(judged):
        alike = f"{sum(judged)} of {len(judged)} answers begin as those of {name}"
        raise EngineError(
            f"engine {client.endpoint.url} serves another target than the release is for: at temperature 0 {alike}; "
            "give the engine the release's target, or the release of this target"
        )


def _speed(answers: Sequence[ServedAnswer]) -> float:
    seconds = [each.latency if each.timed is None else each.timed for each in answers]
    return sum(each.tokens for each in answers) / max(sum(seconds), 1e-9)
