"""How many tokens to propose at each load, by what rounds cost there and how often each position is accepted.

A plain step of all requests takes t; a round that proposes K tokens, T. Between them time is taken to grow evenly with
the tokens that are proposed: a round of k tokens takes t + (T − t) k / K and makes 1 + Σ of the first k shares.
"""

import math
from collections.abc import Sequence

from deepspec.formats.levels import Level
from deepspec.formats.served import ProposedLength


def proposals(levels: Sequence[Level], shares: Sequence[float], slots: int) -> tuple[ProposedLength, ...]:
    """Return the number of tokens to propose at each load of a closed loop that both sides were measured at.

    Args:
        levels: prompts as they are; others are left out.
        shares: of rounds that accept the tokens through each position, as measured here; an engine's own go before.
        slots: K.
    """
    found = []
    for level in levels:
        gains = _gains(level, shares, slots)
        if gains:
            best = max(range(len(gains)), key=gains.__getitem__)
            found.append(ProposedLength(load=int(level.load), tokens=best, speedup=gains[best]))
    return tuple(found)


def best_for_all(levels: Sequence[Level], shares: Sequence[float], slots: int) -> ProposedLength | None:
    """Return one number of tokens for all loads: that of the largest product of speed-ups; None without a load."""
    tables = [gains for level in levels if (gains := _gains(level, shares, slots))]
    if not tables:
        return None
    means = [math.exp(sum(math.log(each) for each in column) / len(column)) for column in zip(*tables, strict=True)]
    best = max(range(len(means)), key=means.__getitem__)
    return ProposedLength(load=max(int(each.load) for each in levels), tokens=best, speedup=means[best])


def _gains(level: Level, shares: Sequence[float], slots: int) -> list[float]:
    """Return the speed-up to expect of 0 to K tokens; nothing where a side was not measured."""
    if level.kind != "closed" or level.context or not level.drafting or not level.plain or not level.accepted:
        return []
    shares = (level.accepted.by_position or tuple(shares))[:slots]
    with_draft, alone = level.drafting.tokens_per_second.value, level.plain.tokens_per_second.value
    per_round = level.accepted.tokens_per_round.value
    if not shares or not with_draft or not alone or not per_round:
        return []
    step, round_seconds = 1 / alone, per_round / with_draft
    return [
        (1 + sum(shares[:k])) * step / (step + (round_seconds - step) * k / len(shares)) for k in range(len(shares) + 1)
    ]
