"""Lossless sampling: what is verified is the very tensor that was sampled from, in fp32.

At temperature 0 a distribution is the most likely token, and no tensor of probabilities is made.
Speculative sampling: arXiv 2211.17192, 2302.01318.

Legend: B rows, K slots of a proposal, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What a draft proposes for each row."""

    tokens: Tensor
    """`(B, K)` ids of the target's vocabulary."""
    lengths: Tensor
    """`(B,)`: slots of each row that are meant; what is behind them is not looked at."""
    probabilities: Tensor | None
    """`(B, K, V)` fp32: what the tokens were sampled from; None at temperature 0."""
    confidence: Tensor | None = None
    """`(B, ≥ K)` logits of the chance that a slot is accepted given that all before it are."""

    def cut(self) -> Self:
        """Return the proposal without slots that no row means."""
        width, weights = int(self.lengths.max()), self.probabilities
        return replace(
            self, tokens=self.tokens[:, :width], probabilities=None if weights is None else weights[:, :width]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the target keeps of a proposal."""

    accepted: Tensor
    """`(B,)`: drafted tokens kept."""
    token: Tensor
    """`(B,)`: the target's own token after them."""


class Noise:
    """Uniform numbers for each row from a generator of its own, so that a sample never depends on its batch.

    A round takes the same number of them whatever it accepts.
    """

    def __init__(self, seed: int, sample_ids: Sequence[str]) -> None:
        """Seed one generator per sample from the seed and its id."""
        self._generators = [_generator(seed, sample_id) for sample_id in sample_ids]

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return `(B, count)` fp64 numbers in [0, 1)."""
        rows = [torch.rand(count, dtype=torch.float64, generator=generator) for generator in self._generators]
        return torch.stack(rows).to(device)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._generators = [self._generators[row] for row in rows]

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another's rows in the place of these."""
        for row, generator in zip(rows, other._generators, strict=True):
            self._generators[row] = generator


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature) in fp32, for a temperature above 0."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def pick(weights: Tensor, noise: Tensor) -> Tensor:
    """Return the token at which the cumulated weights pass the noise, by inversion in fp64.

    Args:
        weights: `(…, V)`, not negative; they need not sum to 1.
        noise: `(…)` in [0, 1).

    Returns:
        `(…)` int64; a token of weight 0 is never returned.
    """
    cumulated = weights.double().cumsum(-1)
    wanted = noise[..., None] * cumulated[..., -1:]
    return torch.searchsorted(cumulated, wanted, right=True).squeeze(-1)


def verify(proposal: Proposal, logits: Tensor, temperature: float, noise: Tensor | None) -> Verdict:
    """Return what the target keeps: the longest prefix that passes, and one token of its own.

    Args:
        proposal: of K slots, K ≥ 0.
        logits: `(B, K + 1, V)` of the target, after the current token and after each drafted one.
        temperature: 0 or above.
        noise: `(B, ≥ K + 1)`: for the target's own token, then for each slot; None at temperature 0.
    """
    if noise is None or proposal.probabilities is None:
        return _verify_greedily(proposal, logits)
    target = probabilities(logits, temperature)
    tokens = proposal.tokens[..., None]
    chance = target[:, :-1].gather(-1, tokens).squeeze(-1)
    drafted = proposal.probabilities.gather(-1, tokens).squeeze(-1)
    accepted = _prefix(noise[:, 1 : 1 + drafted.shape[1]] * drafted < chance, proposal.lengths)
    rest = _rest(proposal, target, accepted)
    return Verdict(accepted=accepted, token=pick(rest, noise[:, 0]))


def _verify_greedily(proposal: Proposal, logits: Tensor) -> Verdict:
    choice = logits.float().argmax(-1)
    accepted = _prefix(proposal.tokens == choice[:, :-1], proposal.lengths)
    return Verdict(accepted=accepted, token=choice.gather(1, accepted[:, None]).squeeze(1))


def _prefix(passed: Tensor, lengths: Tensor) -> Tensor:
    """Return how many slots pass before the first that does not, or that is not meant."""
    meant = torch.arange(passed.shape[1], device=passed.device) < lengths[:, None]
    return (passed & meant).long().cumprod(1).sum(1)


def _rest(proposal: Proposal, target: Tensor, accepted: Tensor) -> Tensor:
    """Return max(p − q, 0) after the accepted prefix, `(B, V)`: p alone where all that was meant is accepted."""
    rows = torch.arange(len(accepted), device=accepted.device)
    chance = target[rows, accepted]
    if proposal.probabilities is None or not proposal.tokens.shape[1]:
        return chance
    rest = (chance - proposal.probabilities[rows, accepted.clamp_max(proposal.tokens.shape[1] - 1)]).clamp_min(0)
    empty = rest.sum(-1, keepdim=True) == 0  # p equals q but for rounding: then p is as good
    return torch.where(empty | (accepted >= proposal.lengths)[:, None], chance, rest)


def _generator(seed: int, sample_id: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
