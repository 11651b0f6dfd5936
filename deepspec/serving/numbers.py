"""What answers say: percentiles, tokens per second, what was accepted, and the load up to which a draft pays."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deepspec.formats.levels import Accepted, Percentiles
from deepspec.formats.numbers import Interval, interval
from deepspec.formats.served import BreakEven
from deepspec.rounds.measure import Floats, resampled, resamples
from deepspec.serving.client import ServedAnswer
from deepspec.serving.counters import Counters

QUANTILES = (0.5, 0.95, 0.99)
MOST_DRAFTS = 64
"""Of a round, among which their number is looked for."""
_NORMAL = 1.96


def percentiles(values: Sequence[float], weights: Sequence[float] | None = None) -> Percentiles:
    """Return the least values that so much of the weight does not exceed (nearest rank).

    Args:
        values: at least one.
        weights: of each; none: 1.
    """
    order = np.argsort(values, kind="stable")
    share = np.cumsum(np.ones(len(order)) if weights is None else np.asarray(weights)[order])
    places = [min(int(np.searchsorted(share, q * share[-1] * (1 - 1e-12))), len(order) - 1) for q in QUANTILES]
    p50, p95, p99 = (float(values[order[place]]) for place in places)
    return Percentiles(p50=p50, p95=p95, p99=p99)


def between_tokens(answers: Sequence[ServedAnswer]) -> Percentiles:
    """Return the wait for a token after the first, over the tokens of all answers."""
    gaps = [gap for each in answers for gap in each.gaps()]
    if not gaps:
        return Percentiles(p50=0, p95=0, p99=0)
    return percentiles([seconds for seconds, _ in gaps], [tokens for _, tokens in gaps])


def closed_speed(answers: Sequence[ServedAnswer], load: int, seed: int) -> Interval:
    """Return tokens per second of so many requests at once: by Little's law, requests x tokens / seconds of answers."""
    sums = _sums(answers)

    def speed(weights: Floats) -> Floats:
        return np.asarray(load * (weights @ sums[:, 0]) / (weights @ sums[:, 1]), dtype=np.float64)

    return interval(resampled(speed, len(answers), seed))


def open_speed(answers: Sequence[ServedAnswer]) -> Interval:
    """Return tokens per second from the first arrival to the last answer."""
    seconds = max(each.end for each in answers) - min(each.intended for each in answers)
    return Interval(value=sum(each.tokens for each in answers) / seconds, low=None, high=None)


def speedups(drafting: Sequence[ServedAnswer], plain: Sequence[ServedAnswer], seed: int) -> Floats:
    """Return tokens per second with the draft over those without, then the same of resamples of the prompts.

    Args:
        drafting: answers to prompts.
        plain: to the same ones, in the same order.
        seed: of the resampling.

    Returns:
        `(1 + resamples,)`.
    """
    ours, theirs = _sums(drafting), _sums(plain)
    weights = resamples(len(ours), seed)
    with_draft = (weights @ ours[:, 0]) / (weights @ ours[:, 1])
    return np.asarray(with_draft * (weights @ theirs[:, 1]) / (weights @ theirs[:, 0]), dtype=np.float64)


def of_draws(draws: Floats) -> Interval:
    """Return the first of some numbers, with the interval of the others."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(value=float(draws[0]), low=float(low), high=float(high))


def break_even(loads: Sequence[int], draws: Sequence[Floats], context: int | None = None) -> BreakEven | None:
    """Return the load beyond which the speed-up is below 1; None where fewer than one load was measured.

    Args:
        loads: ascending.
        draws: of each load, what `speedups` returns.
        context: tokens of the prompts.
    """
    if not loads:
        return None
    table = np.stack(draws)
    found = np.array([crossing(loads, column) for column in table.T])
    low, high = np.percentile(found[1:], [2.5, 97.5], method="nearest")
    value, low, high = (None if np.isinf(each) else float(each) for each in (found[0], low, high))
    return BreakEven(context=context, value=value, low=low, high=high)


def crossing(loads: Sequence[int], speeds: Sequence[float] | Floats) -> float:
    """Return where speed-ups fall below 1 for good, linear in the logarithm of the load; 0: at once, inf: nowhere."""
    paying = [place for place, speed in enumerate(speeds) if speed >= 1]
    if not paying:
        return 0.0
    at = paying[-1]
    if at == len(loads) - 1:
        return float("inf")
    share = (speeds[at] - 1) / (speeds[at] - speeds[at + 1])
    return float(loads[at] * (loads[at + 1] / loads[at]) ** share)


def tokens_per_round(answers: Sequence[ServedAnswer], seed: int = 0) -> Interval | None:
    """Return the tokens that a round makes, with an interval by bootstrap over answers; None where none took a round.

    The first token of an answer comes from the prompt, and every round makes one of the target's own.
    """
    sums = np.array([[each.tokens - 1, each.rounds] for each in answers if each.rounds], dtype=np.float64)
    if not len(sums):
        return None

    def ratio(weights: Floats) -> Floats:
        return np.asarray((weights @ sums[:, 0]) / (weights @ sums[:, 1]), dtype=np.float64)

    return interval(resampled(ratio, len(sums), seed))


def with_rounds(answers: Sequence[ServedAnswer]) -> list[ServedAnswer]:
    """Return answers with the rounds that their drafts tell, where an engine counts none.

    Tokens and accepted drafts tell a round too few where a draft ends the answer. Where each round but the last drafts
    equally many, the number of drafts tells how many there were: one number of drafts a round has to fit all answers,
    none of them by more than that one round. An answer that was cut ends with a token of the target's own, for an
    engine drafts no more than there is room for before it: its tokens tell its rounds.
    """
    size = None if any(each.counted for each in answers) else _drafts_a_round(answers)
    if size is None:
        return list(answers)
    return [each if each.cut else replace(each, counted=-(-each.drafted // size)) for each in answers]


def _drafts_a_round(answers: Sequence[ServedAnswer]) -> int | None:
    """Return how many drafts a round has; None: no number fits, or there is no answer that it would tell of."""
    cut = [each for each in answers if each.drafted and each.cut]
    ended = [each for each in answers if each.drafted and not each.cut]
    fitting = [size for size in range(1, MOST_DRAFTS + 1) if all(_fits(each, size) for each in (*cut, *ended))]

    def likely(size: int) -> tuple[int, int, int]:
        whole = sum(each.drafted % size == 0 for each in ended)
        return whole, sum(_more(each, size) for each in cut), size

    return max(fitting, key=likely) if ended and fitting else None


def _fits(answer: ServedAnswer, size: int) -> bool:
    """Return whether rounds of so many drafts are as many as an answer's tokens tell, or one more or less.

    One less: a round in which there is room for no draft makes a token by itself. Of one that was cut any number less,
    for there was less and less room in its last rounds, and none more.
    """
    more = _more(answer, size)
    return more <= 0 if answer.cut else abs(more) <= 1


def _more(answer: ServedAnswer, size: int) -> int:
    """Return how many more rounds an answer took than its tokens tell, were there so many drafts in each."""
    return -(-answer.drafted // size) - answer.rounds


def accepted_in_answers(answers: Sequence[ServedAnswer], seed: int = 0) -> Accepted | None:
    """Return what an engine told with its answers; None where it told of no draft."""
    drafted, found = sum(each.drafted for each in answers), tokens_per_round(answers, seed)
    if not drafted or found is None:
        return None
    return Accepted(
        rounds=sum(each.rounds for each in answers),
        drafted=drafted,
        accepted=sum(each.accepted for each in answers),
        tokens_per_round=found,
        by_position=_by_position(answers),
    )


def _by_position(answers: Sequence[ServedAnswer]) -> tuple[float, ...]:
    """Return the share of rounds that accept the drafts through each position; none where an answer does not tell."""
    told = [each.by_accepted for each in answers if each.rounds]
    if not told or not all(told):
        return ()
    counts = np.zeros(max(map(len, told)))
    for each in told:
        counts[: len(each)] += each
    through = np.cumsum(counts[::-1])[::-1]
    return tuple(float(share) for share in through[1:] / through[0])


def accepted_in_counters(counted: Counters) -> Accepted | None:
    """Return what an engine counted, rounds taken as independent; None where it drafted nothing.

    Without counts by position nothing is known of how much rounds differ, and there is no interval.
    """
    if not counted.rounds or not counted.drafted:
        return None
    mean = counted.accepted / counted.rounds
    shares = tuple(each / counted.rounds for each in counted.by_position)
    spread = None
    if shares:
        square = sum((2 * k - 1) * share for k, share in enumerate(shares, 1))
        spread = _NORMAL * (max(square - mean * mean, 0) / counted.rounds) ** 0.5
    return Accepted(
        rounds=counted.rounds,
        drafted=counted.drafted,
        accepted=counted.accepted,
        tokens_per_round=Interval(
            value=1 + mean,
            low=None if spread is None else 1 + mean - spread,
            high=None if spread is None else 1 + mean + spread,
        ),
        by_position=shares,
    )


def _sums(answers: Sequence[ServedAnswer]) -> Floats:
    """Return tokens and seconds of each answer, `(N, 2)`."""
    return np.array([[each.tokens, each.latency] for each in answers], dtype=np.float64)
