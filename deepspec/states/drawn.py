"""Did an engine draw its answers from the distribution that its own states give?

Of each drawn token we take how much of the distribution's mass is more likely than it, and half of its own: between 0
and 1, 1/2 on average whatever the distribution, with a variance that the distribution tells. The sum over all tokens,
in standard deviations, is normal to a good approximation.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

DEVIATIONS = 5.0
"""From here on chance does not explain it: it would in one of 1.7 million engines that draw rightly."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What some tokens tell of how they were drawn."""

    off: float
    """Sum over tokens of their place in the distribution less 1/2; below 0: likelier ones than there should be."""
    variance: float
    """Of that sum, where they are drawn rightly."""
    count: int

    @property
    def deviations(self) -> float:
        """Return by how many standard deviations they are off."""
        return self.off / math.sqrt(max(self.variance, 1e-6 * self.count, 1e-12))


@torch.no_grad()
def drawn(log_probabilities: Tensor, tokens: Tensor, temperature: float) -> Drawn:
    """Return what drawn tokens tell.

    Args:
        log_probabilities: of the token at each place, `(T, V)`, at temperature 1.
        tokens: drawn there, `(T,)` int64.
        temperature: at which, above 0.
    """
    chances = (log_probabilities.double() / temperature).softmax(-1)
    ordered, order = chances.sort(dim=-1, descending=True)
    places = ordered.cumsum(-1) - ordered / 2
    own = places.gather(1, (order == tokens[:, None]).long().argmax(-1, keepdim=True))
    variance = (ordered * (places - 0.5).square()).sum()
    return Drawn(float((own - 0.5).sum()), float(variance), len(tokens))


@torch.no_grad()
def below_likeliest(log_probabilities: Tensor, tokens: Tensor) -> float:
    """Return by how many nats a token is less likely than the likeliest of its place, at most: of greedy ones 0."""
    own = log_probabilities.gather(1, tokens[:, None])[:, 0]
    return float((log_probabilities.amax(-1) - own).max())


def together(found: Iterable[Drawn]) -> Drawn:
    """Return what all of them tell."""
    rows = list(found)
    return Drawn(sum(row.off for row in rows), sum(row.variance for row in rows), sum(row.count for row in rows))
