"""Where the Markov head starts: at what the target says, on average, after each token.

The head adds W2·W1[x] to a slot's logits, x the token before. The target's logits at a position are head·h, h its
stored last hidden state; so their mean over all positions that follow x is head·m[x], with m[x] the mean state. With P
the first r principal directions of these means, W1[x] = P·m[x] and W2 = head·Pᵀ give it as exactly as rank r can. A
head that starts so knows the target's bigrams before the first step, which random weights learn only after thousands
of blocks (docs/log.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.models.heads import MarkovHead
from deepspec.records.batch import Record, supervises
from deepspec.records.stream import Samples, read_record

Given = Callable[[Record], object]
"""Hears of a sample that was read."""

SMOOTHING = 2.0
"""Weight of the mean over all tokens in the mean after one token, in positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bigrams:
    """Mean states of the target after each token."""

    tokens: Tensor
    """`(S,)` the tokens seen, ascending."""
    counts: Tensor
    """`(S,)` supervised positions after each."""
    means_SD: Tensor
    """`(S, D)` smoothed mean of the last hidden states there."""
    mean_D: Tensor
    """Mean over all positions: what is said after a token that was not seen."""


def start_markov_head(
    model: BlockDraft | EagleDraft, samples: Samples, most: int, given: Given | None = None
) -> Bigrams | None:
    """Let a fresh vanilla Markov head say what the target says after each token; other drafts stay as they are.

    Args:
        model: fresh, in fp32, with the target's head.
        samples: of the training split.
        most: samples that are read, the first of the first epoch.
        given: hears each of them: whoever wants them, too, need not read them again.

    Returns:
        what it says; None where it stays as it was.
    """
    head = model.markov_head if isinstance(model, BlockDraft) else None
    if most == 0 or len(samples) == 0 or type(head) is not MarkovHead:
        return None
    found = read_bigrams(samples, most, given)
    directions_rD = principal_directions(found, model.config.markov_rank)
    with torch.no_grad():
        w1_Vr = (found.mean_D @ directions_rD.T).repeat(model.config.vocab_size, 1)
        w1_Vr[found.tokens] = found.means_SD @ directions_rD.T
        w2_Vr = model.lm_head.weight.float() @ directions_rD.T
        balance = (w2_Vr.std() / w1_Vr.std().clamp(min=1e-12)).sqrt()  # the optimizer steps both alike
        head.markov_w1.weight[:, : len(directions_rD)] = w1_Vr * balance
        head.markov_w2.weight[:, : len(directions_rD)] = w2_Vr / balance
    return found


def read_bigrams(samples: Samples, most: int, given: Given | None = None) -> Bigrams:
    """Return the mean state after each token, over the supervised positions of some samples.

    Memory is that of one state a token that is seen, and of one sample.
    """
    numbers = list(samples.order(0))[:most]
    seen_S = torch.unique(torch.cat([_before_supervised(*samples.tokens(number))[1] for number in numbers]))
    counts_S, sums_SD = torch.zeros(len(seen_S), dtype=torch.int64), torch.empty(0)
    samples.ahead(numbers)
    for number in numbers:
        record = read_record(samples, number)
        if given is not None:
            given(record)
        positions, tokens_N = _before_supervised(record.input_ids, record.loss_mask)
        rows = supervises(record.loss_mask).cumsum(0) - 1
        states_ND = record.last_hidden[rows[positions]].float()
        if not len(sums_SD):
            sums_SD = states_ND.new_zeros(len(seen_S), states_ND.shape[1])
        place_N = torch.searchsorted(seen_S, tokens_N)
        sums_SD.index_add_(0, place_N, states_ND)
        counts_S += place_N.bincount(minlength=len(seen_S))
    mean_D = (sums_SD.double().sum(0) / counts_S.sum()).float()
    means_SD = (sums_SD + SMOOTHING * mean_D) / (counts_S[:, None] + SMOOTHING)
    return Bigrams(tokens=seen_S, counts=counts_S, means_SD=means_SD, mean_D=mean_D)


def _before_supervised(input_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions whose states say a supervised token, the next one, and the tokens there."""
    positions = loss_mask[1:].nonzero().squeeze(1)
    return positions, input_ids[positions]


def principal_directions(found: Bigrams, rank: int) -> Tensor:
    """Return the directions `(min(r, D), D)` that hold most of the mean states, each weighted by its count."""
    weighted_SD = found.counts.double().sqrt()[:, None] * found.means_SD.double()
    _, vectors_DD = torch.linalg.eigh(weighted_SD.T @ weighted_SD)  # ascending
    directions_rD: Tensor = vectors_DD.flip(1)[:, :rank].T.float().contiguous()
    return directions_rD
