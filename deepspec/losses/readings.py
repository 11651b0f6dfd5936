"""Several readings of the same rows in one pass: the head's products are taken once, whatever is added to them.

Reading g of a row is softmax(head(h) + W2 m_g), each with weights of its own; one more, where there are weights for it,
is of the head alone. All are held against one target distribution, and their gradients of head(h) are added before the
product with the head.

Legend: G readings, F of them with features, N rows, M rows of a chunk, r rank, V vocabulary of the head.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepspec.losses.chunks import Chunks, TargetProbabilities
from deepspec.losses.rows import Head, Rows, row_loss
from deepspec.losses.terms import Terms


class Readings(Chunks):
    """One pass over the rows, each read as often as there are weights for it; in torch's functions on every device."""

    def __init__(self, rows: Rows, head: Head, terms: Terms, **how: Any) -> None:
        """Cut the rows into chunks, and make buffers for readings."""
        super().__init__(replace(rows, markov=None), head, terms, **how)
        self.weights_GN = rows.weights.to(self.dtype)
        self.features_FNr = rows.hidden.new_empty(0) if rows.markov is None else rows.markov.detach()
        kinds, num_rows = self.measured.shape
        self.every = self.measured.new_zeros(kinds, len(self.weights_GN), num_rows)
        self.read, self.summed = self._buffer(self.size), self._buffer(self.size)
        self.kept = self._buffer(self.size * self.with_target)

    def run(self, *, with_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return loss, measurements `(G, N)`, and the gradients of hidden, of features and of W2."""
        rows = self.rows
        if not with_gradients:
            for span, positions in self.spans:
                self._read(span, positions, None)
            return self._loss(), tuple(self.every), ()
        grad_ND = torch.empty_like(rows.hidden, memory_format=torch.contiguous_format)
        grad_FNr = torch.empty_like(self.features_FNr)
        grad_Vr = None
        if self.markov is not None:
            grad_Vr = self.markov.weight_VD.new_zeros(self.markov.weight_VD.shape, dtype=self.dtype)
        for span, positions in self.spans:
            summed_MV = self._read(span, positions, (grad_FNr, grad_Vr))
            grad_ND[span] = self.head.backward(self._uncap(summed_MV))
        narrow = None if grad_Vr is None or self.markov is None else grad_Vr.to(self.markov.weight_VD.dtype)
        return self._loss(), tuple(self.every), (grad_ND, grad_FNr, narrow)

    def _read(self, span: slice, positions: slice, grads: tuple[Tensor, Tensor | None] | None) -> Tensor:
        """Fill in what is measured of a chunk, and the gradients where wanted; return that of what the head gave."""
        size = span.stop - span.start
        unary_MV, said = self._draft_logits(span), self._target(span, positions)
        summed_MV = self.summed[:size].zero_()
        for reading in range(len(self.weights_GN)):
            logits_MV, held = self.read[:size].copy_(unary_MV), self._copy(said, size)
            if self.markov is not None and reading < len(self.features_FNr):
                self.markov.forward(self.features_FNr[reading, span], logits_MV, add=True)
            self.measured = self.every[:, reading]
            self._measure(span, logits_MV, held)
            if grads is not None:
                grad_MV = self._logits_gradient(span, logits_MV, held).mul_(self.weights_GN[reading, span, None])
                self._take(reading, span, grad_MV, grads)
                summed_MV.add_(grad_MV)
        return summed_MV

    def _take(self, reading: int, span: slice, grad_MV: Tensor, grads: tuple[Tensor, Tensor | None]) -> None:
        """Add a reading's part to the gradients of its features and of W2."""
        grad_FNr, grad_Vr = grads
        if self.markov is None or grad_Vr is None or reading >= len(self.features_FNr):
            return
        grad_FNr[reading, span] = self.markov.backward(grad_MV).to(grad_FNr.dtype)
        self.markov.accumulate(grad_Vr, grad_MV, self.features_FNr[reading, span])

    def _copy(self, said: TargetProbabilities | None, size: int) -> TargetProbabilities | None:
        """Return what the target says, for one reading: measuring takes its place."""
        if said is None:
            return None
        log = None if said.log is None else said.log.clone()
        return replace(said, chances=self.kept[:size].copy_(said.chances), log=log)

    def _loss(self) -> Tensor:
        return (self.weights_GN * row_loss(self.terms, self.every)).sum()
