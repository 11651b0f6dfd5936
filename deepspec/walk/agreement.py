"""What the target keeps of what a draft says in each slot, given that it kept all slots before.

At temperature 0: whether the draft's likeliest token is the target's. Above it, of an answer that the target sampled:
min(1, q / p) of the answer's token, p and q as the answers were sampled. Then the target gives a token x with the
chance p(x), and the draft proposed it and had it accepted with min(p(x), q(x)): arXiv 2211.17192.

So of the target two numbers a token are needed, whatever the draft is. And of the draft nothing is asked in slots
behind one that is never kept: that spares most products with the head, the dear part.

Legend: P target positions, R slots, M rows of a chunk, D hidden size, V vocabulary of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.algorithms.base import Drafted
from deepspec.losses.chunked import CHUNK_ROWS, CHUNK_ROWS_ON_CPU
from deepspec.losses.rows import Head
from deepspec.models.products import MatrixProduct, product_of
from deepspec.models.whole_head import cap
from deepspec.target_cache.facts import Sampled
from deepspec.walk.chances import chances


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerChances:
    """What the target says where a token of an answer stands."""

    best: Tensor
    """Its likeliest token; −1 where it was not asked."""
    chance: Tensor
    """Chance of the answer's own token, as answers were sampled; at temperature 0, 1."""


def said_by_target(head: Head, states_PD: Tensor, tokens_P: Tensor, sampled: Sampled | None) -> AnswerChances:
    """Return what the target says at some positions, `(P,)` each.

    Args:
        head: the one that it shares with a draft.
        states_PD: after its final norm.
        tokens_P: the answer's token behind each.
        sampled: how the answers were; None: at temperature 0.
    """
    end = head if head.whole is None else head.whole
    product = product_of(end.weight, end.bias)
    said = AnswerChances(best=tokens_P.clone(), chance=states_PD.new_ones(len(tokens_P), dtype=torch.float32))
    for span in _spans(len(tokens_P), states_PD.device):
        logits_MV = _logits(product, states_PD[span], head.softcap)
        said.best[span] = logits_MV.argmax(1)
        if sampled is not None:
            said.chance[span] = chances(logits_MV, tokens_P[span], sampled)
    return said


def kept_of_draft(drafted: Drafted, said: AnswerChances, slots: int, sampled: Sampled | None) -> tuple[Tensor, Tensor]:
    """Return what is kept of each slot, `(R,)` each: greedily, 0 or 1; and the chance as answers were sampled.

    Behind a slot that is never kept, 0 stands for whatever it would be.

    Args:
        drafted: what a draft says in R slots.
        said: what the target does, `(R,)`; slots where it was not asked are not kept.
        slots: K.
        sampled: how the answers were; None: at temperature 0.
    """
    held = _Keeping(drafted, said, sampled)
    begins_R, slot_R = drafted.places // slots, drafted.places % slots
    asked_R = said.best >= 0
    alive = torch.ones(int(begins_R.max()) + 1 if len(begins_R) else 0, dtype=torch.bool, device=begins_R.device)
    for slot in range(slots):
        chosen = ((slot_R == slot) & asked_R & alive[begins_R]).nonzero()[:, 0]
        for span in _spans(len(chosen), chosen.device):
            held.take(chosen[span])
        alive.zero_()
        alive[begins_R[chosen]] = (held.greedy[chosen] > 0) | (held.sampled[chosen] > 0)
    return held.greedy, held.sampled


class _Keeping:
    """Fills in what is kept, some rows at a time."""

    def __init__(self, drafted: Drafted, said: AnswerChances, sampled: Sampled | None) -> None:
        rows, self._said, self._sampled = drafted.rows, said, sampled
        self._drafted, self._head = drafted, product_of(drafted.head.weight, drafted.head.bias)
        self._markov = None if rows.markov_weight is None else product_of(rows.markov_weight.detach())
        self.greedy = rows.hidden.new_zeros(len(rows.hidden), dtype=torch.float32)
        self.sampled = torch.zeros_like(self.greedy)

    def take(self, chosen_M: Tensor) -> None:
        """Take in some rows."""
        rows, head, said = self._drafted.rows, self._drafted.head, self._said
        logits_MV = _logits(self._head, rows.hidden[chosen_M], head.softcap)
        if self._markov is not None and rows.markov is not None:
            self._markov.forward(rows.markov[chosen_M], logits_MV, add=True)
        if self._drafted.choose is not None:
            logits_MV = self._drafted.choose(logits_MV, chosen_M)
        guess_M = logits_MV.argmax(1)
        if head.whole is not None:
            guess_M = head.whole.known[guess_M]
        self.greedy[chosen_M] = (guess_M == said.best[chosen_M]).float()
        if self._sampled is not None:
            q_M = chances(logits_MV, self._drafted.labels[chosen_M], self._sampled) * self._drafted.known[chosen_M]
            self.sampled[chosen_M] = (q_M / said.chance[chosen_M]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)


def _logits(product: MatrixProduct, states_MD: Tensor, softcap: float | None) -> Tensor:
    logits_MV = states_MD.new_empty(len(states_MD), len(product.weight_VD), dtype=torch.float32)
    product.forward(states_MD, logits_MV)
    cap(logits_MV, softcap)
    return logits_MV


def _spans(count: int, device: torch.device) -> Iterator[slice]:
    size = CHUNK_ROWS_ON_CPU if device.type == "cpu" else CHUNK_ROWS
    return (slice(start, start + size) for start in range(0, count, size))
