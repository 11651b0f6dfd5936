"""The chunks of `chunked.py` with a kernel between the products: on CUDA.

A chunk's logits are fp32 and exist once; of the target, those of its distinct positions. The gradient takes the place
of fp32 logits where the weights are fp32, too, and lies beside them where they are narrower, rounded once.

Legend: M rows of a chunk, Q distinct target positions of it, V vocabulary of the head.
"""

import torch
from torch import Tensor

from deepspec.losses.chunks import Chunks
from deepspec.losses.terms import LEAST_ACCEPTANCE
from deepspec.losses.triton_loss import OPTIONS, TILE, measure_rows, normalize_target


class TritonChunks(Chunks):
    """One pass over the rows, with two launches a chunk between the products; nothing is read from the device."""

    def run(self, *, with_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return loss, measurements, and the gradients of hidden, markov and W2."""
        with torch.cuda.device_of(self.logits):  # Triton launches on the current one
            return super().run(with_gradients=with_gradients)

    def _make_buffers(self) -> None:
        rows = self.rows
        narrow = rows.hidden.dtype != self.dtype
        beside = self.markov is not None and self.softcap is not None
        self.index = rows.target_index.to(torch.int32)
        self.bias = self._buffer(self.size) if beside else self.logits
        self.logits_grad = torch.empty_like(self.logits, dtype=rows.hidden.dtype) if narrow else self.logits
        self.bias_grad = torch.empty_like(self.bias, dtype=rows.hidden.dtype) if beside and narrow else self.bias
        self.normalizers = self.target.new_empty(len(self.target))
        self.best = self.index.new_empty(len(self.target))

    def _look(self, span: slice, positions: slice) -> None:
        """Fill in what is measured."""
        self._take_products(span, positions)
        self._normalize(positions)
        self._launch(span, positions, with_gradients=False)

    def _chunk(self, span: slice, positions: slice) -> Tensor:
        """Fill in what is measured; return the gradient of the logits, softcapped ones, without the rows' weights."""
        self._take_products(span, positions)
        self._normalize(positions)
        self._launch(span, positions, with_gradients=True)
        return (self.logits_grad if self.bias is self.logits else self.bias_grad)[: span.stop - span.start]

    def _take_products(self, span: slice, positions: slice) -> None:
        """Fill the buffers of logits; a Markov bias behind a softcap has a buffer of its own."""
        rows, size = self.rows, span.stop - span.start
        self.head.forward(rows.hidden[span].detach(), self.logits[:size])
        if self.markov is not None and rows.markov is not None:
            self.markov.forward(rows.markov[span].detach(), self.bias[:size], add=self.bias is self.logits)
        self._note_candidates(span, self.logits[:size])
        if self.with_target:
            self.head.forward(rows.target[positions], self.target[: positions.stop - positions.start])

    def _normalize(self, positions: slice) -> None:
        if self.with_target:
            normalize_target[(positions.stop - positions.start,)](
                self.target, self.normalizers, self.best, self.target.shape[1], float(self.softcap or 1),
                CAPPED=self.softcap is not None, TILE=TILE, **OPTIONS,
            )  # fmt: skip

    def _launch(self, span: slice, positions: slice, *, with_gradients: bool) -> None:
        terms, rows = self.terms, self.rows
        measure_rows[(span.stop - span.start,)](
            self.logits, self.bias, self.logits_grad, self.bias_grad, self.labels,
            self.target, self.normalizers, self.best, self.index, self.measured,
            span.start, positions.start, self.measured.shape[1], self.logits.shape[1], float(self.softcap or 1),
            terms.cross_entropy, terms.total_variation, terms.soft_cross_entropy, terms.forward_kl, terms.reverse_kl,
            terms.jensen_shannon, terms.log_acceptance, terms.lk_hybrid, terms.lk_sharpness, LEAST_ACCEPTANCE,
            CAPPED=self.softcap is not None, BIASED=self.bias is not self.logits, HELD=self.with_target,
            SLOPED=terms.sloped, DIVERGENT=terms.divergent, LABELLED=rows.labels is not None,
            GRADIENT=with_gradients, TILE=TILE, **OPTIONS,
        )  # fmt: skip

    def _uncap(self, grad_MV: Tensor) -> Tensor:
        """Return the gradient of what the head made; the kernel has written it."""
        return self.logits_grad[: len(grad_MV)]
