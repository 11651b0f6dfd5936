"""The target's whole head beside the rows of it that a draft of reduced vocabulary knows.

Legend: Q target positions, D hidden size, V known tokens, W the target's whole vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.models.products import BiasedProduct, MatrixProduct

ROWS = 128
"""Positions of which logits over the whole vocabulary are held at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A target's whole head, and what a draft knows of it."""

    weight: Tensor
    """`(W, D)`."""
    known: Tensor
    """`(V,)` int64, ascending: the rows that the draft knows."""
    bias: Tensor | None = None
    """`(W,)`."""


class WholeHead:
    """The target's whole head, ready to be multiplied.

    Args:
        whole: the head.
        softcap: that logits are bent by; None: they are not.
        most: positions asked for at once, at most.
    """

    def __init__(self, whole: Whole, softcap: float | None, most: int) -> None:
        """Make room for the logits of some positions."""
        dtype = torch.float64 if whole.weight.dtype == torch.float64 else torch.float32
        plain = MatrixProduct(whole.weight)
        self._product = plain if whole.bias is None else BiasedProduct(plain, whole.bias)
        self._known_V, self._softcap = whole.known, softcap
        self._logits_QW = whole.weight.new_empty(min(most, ROWS), len(whole.weight), dtype=dtype)

    def logits(self, states_QD: Tensor, out_QV: Tensor) -> tuple[Tensor, Tensor]:
        """Write the logits of the known tokens.

        Returns:
            the most likely token of all, as the draft numbers it, −1 where it does not know it; and the chance that the
            known ones have together; `(Q,)` each.
        """
        pieces = zip(torch.split(states_QD, ROWS), torch.split(out_QV, ROWS), strict=True)
        best, share = zip(*(self._piece(states, out) for states, out in pieces), strict=True)
        return torch.cat(best), torch.cat(share)

    def _piece(self, states_QD: Tensor, out_QV: Tensor) -> tuple[Tensor, Tensor]:
        logits_QW = self._logits_QW[: len(states_QD)]
        self._product.forward(states_QD, logits_QW)
        cap(logits_QW, self._softcap)
        torch.index_select(logits_QW, 1, self._known_V, out=out_QV)
        best_Q = logits_QW.argmax(-1)
        place_Q = torch.searchsorted(self._known_V, best_Q).clamp(max=len(self._known_V) - 1)
        known_Q = self._known_V[place_Q] == best_Q
        share_Q = (out_QV.logsumexp(-1) - logits_QW.logsumexp(-1)).exp().clamp(max=1)
        return place_Q.where(known_Q, -1), share_Q


def cap(logits: Tensor, softcap: float | None) -> None:
    """Bend logits as families with a softcap do, in place."""
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
