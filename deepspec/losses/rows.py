"""What a loss is made from, and what is measured of it: rows of hidden states, a head, values by row.

Legend: that of `chunked.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.losses import divergences
from deepspec.losses.terms import Terms
from deepspec.models.whole_head import Whole

MEASURED = 5
"""Numbers that are measured of each row, whatever the terms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The frozen head that draft and target share."""

    weight: Tensor
    """`(V, D)`."""
    bias: Tensor | None = None
    """`(V,)`, before the softcap."""
    softcap: float | None = None
    whole: Whole | None = None
    """The target's, where `weight` is some rows of it and acceptance is to be counted against all that it says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The supervised positions of a micro-batch, ordered by target position."""

    hidden: Tensor
    """`(N, D)` draft states after the final norm."""
    labels: Tensor | None
    """`(N,)` true tokens, as the head numbers them; None: the label is the target's most likely token that the head
    knows."""
    weights: Tensor
    """`(N,)` row weights, already divided by the global denominator; `(G, N)` where rows are read several times."""
    target: Tensor
    """`(P, D)` target states after its final norm, one per distinct position."""
    target_index: Tensor
    """`(N,)` which of the P each row is held against: ascending, every one used."""
    on_host: NDArray[np.int64] | None = None
    """The same in host memory, so that rows are cut into chunks without waiting for a device; None: it is fetched."""
    markov: Tensor | None = None
    """`(N, r)` what the Markov head's W2 multiplies; `(F, N, r)` of each reading with a bias (readings.py)."""
    markov_weight: Tensor | None = None
    """`(V, r)` W2."""


@dataclass(frozen=True, slots=True)
class RowLosses:
    """What the chunk pass measured of each row, detached: `(N,)` fp32 each; `(G, N)` of several readings."""

    cross_entropy: Tensor
    total_variation: Tensor
    """‖q − p‖₁."""
    soft_cross_entropy: Tensor
    acceptance: Tensor
    """Σ min(p, q): the chance that the target keeps the drafted token. arXiv 2211.17192. With the target's whole head p
    is not restricted; without it, a head that knows a part of the vocabulary gives too much."""
    correct: Tensor
    """1 where the draft's most likely token is the target's, else 0; of the vocabulary that p is of."""
    forward_kl: Tensor | None = None
    """None, like what follows, where there is no term beside the first three."""
    reverse_kl: Tensor | None = None
    jensen_shannon: Tensor | None = None
    overlap: Tensor | None = None
    """Σ min(p, q) of the vocabulary that the head knows: what `log_acceptance` and `lk_hybrid` read."""
    labels: Tensor | None = None
    """`(N,)` int64: what the cross-entropy is held against."""
    candidates: Tensor | None = None
    """`(N, k)` int64: the draft's k most likely tokens, the best first; None where none were asked for."""

    def loss(self, terms: Terms) -> Tensor:
        """Return the loss of each row, without its weight."""
        every = (
            self.cross_entropy, self.total_variation, self.soft_cross_entropy, self.acceptance, self.correct,
            self.forward_kl, self.reverse_kl, self.jensen_shannon, self.overlap,
        )  # fmt: skip
        return row_loss(terms, torch.stack([each for each in every if each is not None]))


def row_loss(terms: Terms, measured: Tensor) -> Tensor:
    """Return the loss of each row, without its weight, of what was measured of rows: of each kind, in their order."""
    cross, distance, soft, *_ = measured
    per_row: Tensor = terms.cross_entropy * cross + terms.total_variation * distance + terms.soft_cross_entropy * soft
    return per_row + divergences.loss(terms, measured[MEASURED:]) if terms.divergent else per_row


def chunks(rows: Rows, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows of each chunk, at most so many, and the target positions that they are held against."""
    index = rows.target_index.cpu().numpy() if rows.on_host is None else rows.on_host
    for start in range(0, len(index), max(1, size)):
        stop = min(start + size, len(index))
        yield slice(start, stop), slice(int(index[start]), int(index[stop - 1]) + 1)
