"""What the target keeps of what a draft says in each slot, given that it kept all slots before.

At temperature 0: whether the draft's likeliest token is the target's. Above it, of an answer that the target sampled:
min(1, q / p) of the answer's token, p and q as the answers were sampled. Then the target gives a token x with the
chance p(x), and the draft proposed it and had it accepted with min(p(x), q(x)): arXiv 2211.17192.

Legend: R slots, P distinct target positions, M slots of a chunk, Q target positions of a chunk, V vocabulary of the
draft's head, W of the target's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.algorithms.base import Drafted
from deepspec.losses.chunked import CHUNK_ROWS, CHUNK_ROWS_ON_CPU, chunks
from deepspec.models.products import product_of
from deepspec.models.whole_head import cap
from deepspec.target_cache.facts import Sampled
from deepspec.walk.chances import chances


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What the target keeps of some slots, and of the answers' own tokens."""

    greedy: Tensor
    """`(R,)` bool: the draft's likeliest token is the target's."""
    sampled: Tensor
    """`(R,)` chance that the answer's token is kept; 0 at temperature 0."""
    own: Tensor
    """`(P,)` bool: the answer's token behind the position is the target's likeliest."""
    possible: Tensor
    """`(P,)` bool: the target could have drawn it; True at temperature 0."""


def agreement(drafted: Drafted, sampled: Sampled | None) -> Agreement:
    """Return what the target keeps of some slots.

    Args:
        drafted: what a draft says there.
        sampled: how the answers were; None, or at temperature 0: nothing is told but what is greedy.
    """
    rows = drafted.rows
    most = CHUNK_ROWS_ON_CPU if rows.hidden.device.type == "cpu" else CHUNK_ROWS
    how = sampled if sampled is not None and sampled.temperature > 0 else None
    held = _Held(drafted, how)
    for span, positions in chunks(rows, most):
        held.take(span, positions)
    return Agreement(greedy=held.greedy, sampled=held.sampled, own=held.own, possible=held.possible)


class _Held:
    """Fills in the answer chunk by chunk: no tensor of slots × vocabulary outlives one."""

    def __init__(self, drafted: Drafted, sampled: Sampled | None) -> None:
        rows, head = drafted.rows, drafted.head
        self._drafted, self._sampled = drafted, sampled
        self._head = product_of(head.weight)
        self._target = self._head if head.whole is None else product_of(head.whole.weight)
        self._markov = None if rows.markov_weight is None else product_of(rows.markov_weight.detach())
        new = rows.hidden.new_zeros
        self.greedy, self.sampled = new(len(rows.hidden), dtype=torch.bool), new(len(rows.hidden), dtype=torch.float32)
        self.own = new(len(rows.target), dtype=torch.bool)
        self.possible = ~self.own
        self._tokens = new(len(rows.target), dtype=torch.int64)
        self._tokens[rows.target_index] = drafted.tokens

    def take(self, span: slice, positions: slice) -> None:
        """Take in the slots of a chunk, and the target positions that they are held against."""
        drafted, tokens_Q = self._drafted, self._tokens[positions]
        local_M = drafted.rows.target_index[span] - positions.start
        said_QW = self._said(positions)
        best_Q = said_QW.argmax(1)
        logits_MV = self._logits(span)
        guess_M = logits_MV.argmax(1)
        if drafted.head.whole is not None:
            guess_M = drafted.head.whole.known[guess_M]
        self.own[positions] = best_Q == tokens_Q
        self.greedy[span] = guess_M == best_Q[local_M]
        if self._sampled is not None:
            p_Q = chances(said_QW, tokens_Q, self._sampled)
            q_M = chances(logits_MV, drafted.rows.labels[span], self._sampled) * drafted.known[span]
            self.possible[positions] = p_Q > 0
            self.sampled[span] = (q_M / p_Q[local_M]).nan_to_num(0.0, posinf=1.0).clamp(max=1.0)

    def _said(self, positions: slice) -> Tensor:
        states_QD = self._drafted.rows.target[positions]
        said_QW = states_QD.new_empty(len(states_QD), len(self._target.weight_VD), dtype=torch.float32)
        self._target.forward(states_QD, said_QW)
        cap(said_QW, self._drafted.head.softcap)
        return said_QW

    def _logits(self, span: slice) -> Tensor:
        rows = self._drafted.rows
        hidden_MD = rows.hidden[span]
        logits_MV = hidden_MD.new_empty(len(hidden_MD), len(self._head.weight_VD), dtype=torch.float32)
        self._head.forward(hidden_MD, logits_MV)
        cap(logits_MV, self._drafted.head.softcap)
        if self._markov is not None and rows.markov is not None:
            self._markov.forward(rows.markov[span], logits_MV, add=True)
        return logits_MV
