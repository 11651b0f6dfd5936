"""The tokens of a proposal: how many, and one of them from a draft's logits.

Legend: B rows, K slots, V vocabulary, k candidates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.errors import CheckpointError
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.proposers.sampling import pick, probabilities


def choose(
    draft: BlockDraft | EagleDraft,
    logits: Tensor,
    temperature: float,
    noise: Tensor | None,
    candidates: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return a token of the target's per row, and the probabilities that it was sampled from, None at temperature 0.

    Args:
        draft: whose logits they are.
        logits: `(B, V)`, or `(B, k)` of candidates.
        temperature: of the distribution.
        noise: `(B,)`; None at temperature 0.
        candidates: `(B, k)` the target's tokens that the logits are of; None: those that the head knows.
    """

    def named(place: Tensor) -> Tensor:
        return draft.target_ids(place) if candidates is None else candidates.gather(1, place[:, None])[:, 0]

    if noise is None:
        return named(logits.float().argmax(-1)), None  # in bf16 it takes four times as long
    weights = probabilities(logits, temperature)
    token, known = named(pick(weights, noise)), draft.known_ids()
    whole = (len(weights), draft.config.vocab_size)
    if candidates is not None:
        weights = weights.new_zeros(whole).scatter_(1, candidates, weights)
    elif known is not None:
        weights = weights.new_zeros(whole).index_copy_(1, known, weights)
    return token, weights


def stacked(drawn: Sequence[Tensor | None]) -> Tensor | None:
    """Return the probabilities of a proposal's tokens, `(B, K, V)`; None at temperature 0."""
    weights = [tensor for tensor in drawn if tensor is not None]
    return torch.stack(weights, 1) if weights else None


def at_most(most: int, slots: int | None) -> int:
    """Return how many tokens are proposed at a time: as many as asked for, all where nothing is asked.

    Raises:
        CheckpointError: a draft proposes fewer.
    """
    if slots is not None and not 1 <= slots <= most:
        raise CheckpointError(f"cannot propose {slots} tokens: the draft was trained to propose {most} at a time")
    return most if slots is None else slots
