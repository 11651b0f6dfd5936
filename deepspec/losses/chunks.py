"""The loss of rows in torch, a chunk of them at a time: logits, what is measured, gradients.

Legend: that of `chunked.py`, which has the formulas.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.losses import divergences
from deepspec.losses.rows import MEASURED, Head, Rows, chunks, row_loss
from deepspec.losses.terms import Terms
from deepspec.models.products import product_of
from deepspec.models.whole_head import WholeHead, cap


class Chunks:
    """One pass over the rows, with buffers that every chunk reuses."""

    def __init__(
        self, rows: Rows, head: Head, terms: Terms, *, with_target: bool, most: int, candidates: int = 0
    ) -> None:
        """Cut the rows into chunks of at most so many, and make the buffers."""
        self.rows, self.terms, self.softcap = rows, terms, head.softcap
        self.with_target = with_target
        self.head = product_of(head.weight, head.bias)
        self.markov = None if rows.markov_weight is None else product_of(rows.markov_weight.detach())
        self.dtype = torch.float64 if rows.hidden.dtype == torch.float64 else torch.float32
        num_rows = len(rows.hidden)
        self.size = math.ceil(num_rows / max(1, math.ceil(num_rows / most)))
        self.spans = list(chunks(rows, self.size))
        distinct = max((positions.stop - positions.start for _, positions in self.spans), default=0)
        self.whole = None if head.whole is None or not with_target else WholeHead(head.whole, head.softcap, distinct)
        self.logits = self._buffer(self.size)
        self.target = self._buffer(distinct * with_target)
        kinds = MEASURED + len(divergences.MEASURED) * terms.divergent
        self.measured = rows.hidden.new_zeros(kinds, num_rows, dtype=self.dtype)
        self.labels = rows.target_index.new_empty(num_rows) if rows.labels is None else rows.labels.contiguous()
        self.candidates = rows.target_index.new_empty(num_rows, candidates) if candidates else None
        self._make_buffers()

    def run(self, *, with_gradients: bool) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Return loss, measurements, and the gradients of hidden, markov and W2: none where they are not wanted."""
        rows = self.rows
        if not with_gradients:
            for span, positions in self.spans:
                self._look(span, positions)
            return self._loss(), tuple(self.measured), ()
        grad_ND = torch.empty_like(rows.hidden, memory_format=torch.contiguous_format)
        grad_Nr = None if rows.markov is None else torch.empty_like(rows.markov)
        grad_Vr = (
            None
            if rows.markov_weight is None
            else rows.markov_weight.new_zeros(rows.markov_weight.shape, dtype=self.dtype)
        )
        for span, positions in self.spans:
            logits_grad_MV = self._chunk(span, positions)
            weights_M1 = rows.weights[span, None].to(self.dtype)
            if grad_Nr is not None and grad_Vr is not None and self.markov is not None and rows.markov is not None:
                grad_Nr[span] = self.markov.backward(logits_grad_MV) * weights_M1
                self.markov.accumulate(grad_Vr, logits_grad_MV, rows.markov[span].detach() * weights_M1)
            grad_ND[span] = self.head.backward(self._uncap(logits_grad_MV)) * weights_M1
        grad_W2 = None if grad_Vr is None or rows.markov_weight is None else grad_Vr.to(rows.markov_weight.dtype)
        return self._loss(), tuple(self.measured), (grad_ND, grad_Nr, grad_W2)

    def _buffer(self, rows: int) -> Tensor:
        return self.rows.hidden.new_empty(rows, len(self.head.weight_VD), dtype=self.dtype)

    def _make_buffers(self) -> None:
        """Make what only these functions need."""
        self.scaled = self._buffer(self.size * (self.whole is not None))
        self.expanded = self._buffer(self.size * self.with_target)
        self.tanh = self._buffer(self.size * (self.softcap is not None))

    def _look(self, span: slice, positions: slice) -> None:
        """Fill in what is measured."""
        self._measure(span, self._draft_logits(span), self._target(span, positions))

    def _chunk(self, span: slice, positions: slice) -> Tensor:
        """Fill in what is measured; return the gradient of the logits, softcapped ones, without the rows' weights."""
        logits_MV = self._draft_logits(span)
        target = self._target(span, positions)
        self._measure(span, logits_MV, target)
        return self._logits_gradient(span, logits_MV, target)

    def _note_candidates(self, span: slice, logits_MV: Tensor) -> None:
        """Keep the most likely tokens of a chunk's rows, where they are asked for."""
        if self.candidates is not None:
            self.candidates[span] = logits_MV.topk(self.candidates.shape[1], dim=-1).indices

    def _draft_logits(self, span: slice) -> Tensor:
        rows = self.rows
        logits_MV = self.logits[: span.stop - span.start]
        self.head.forward(rows.hidden[span].detach(), logits_MV)
        if self.softcap is not None:
            logits_MV.div_(self.softcap).tanh_()
            self.tanh[: len(logits_MV)].copy_(logits_MV)
            logits_MV.mul_(self.softcap)
        if self.markov is not None and rows.markov is not None:
            self.markov.forward(rows.markov[span].detach(), logits_MV, add=True)
        self._note_candidates(span, logits_MV)
        return logits_MV

    def _target(self, span: slice, positions: slice) -> "TargetProbabilities | None":
        """Return what the target says at the position of each row."""
        if not self.with_target:
            return None
        target_QV, states_QD = self.target[: positions.stop - positions.start], self.rows.target[positions]
        local_M = self.rows.target_index[span] - positions.start
        if self.whole is None:
            self.head.forward(states_QD, target_QV)
            cap(target_QV, self.softcap)
            best_M, share_M = target_QV.argmax(-1)[local_M], None
        else:
            best_Q, share_Q = self.whole.logits(states_QD, target_QV)
            best_M, share_M = best_Q[local_M], share_Q[local_M]
        if self.rows.labels is None:
            self.labels[span] = best_M if self.whole is None else target_QV.argmax(-1)[local_M]
        log_MV = target_QV.log_softmax(-1)[local_M] if self.terms.divergent else None
        torch.softmax(target_QV, -1, out=target_QV)
        target_MV = torch.index_select(target_QV, 0, local_M, out=self.expanded[: span.stop - span.start])
        return TargetProbabilities(target_MV, best_M, share_M, log_MV)

    def _measure(self, span: slice, logits_MV: Tensor, target: "TargetProbabilities | None") -> None:
        """Fill in what is measured; logits become q, and p becomes q − p."""
        cross, distance, soft, acceptance, correct = (part[span] for part in self.measured[:MEASURED])
        top_M = logits_MV.amax(-1)
        label_M = logits_MV.gather(1, self.labels[span, None])[:, 0]
        if target is not None:
            target_MV, best_M = target.chances, target.best
            said_M = logits_MV.gather(1, best_M.clamp(min=0)[:, None])[:, 0]
            correct.copy_((said_M == top_M) & (best_M >= 0))
            expected_M = torch.linalg.vecdot(target_MV, logits_MV)
            if target.log is not None:
                divergences.ratio(logits_MV, target.log, logits_MV.logsumexp(-1))
        torch.softmax(logits_MV, -1, out=logits_MV)
        normalizer_M = top_M - logits_MV.amax(-1).log_()
        torch.sub(normalizer_M, label_M, out=cross)
        if target is not None:
            torch.sub(normalizer_M, expected_M, out=soft)
            if target.share is not None:
                scaled_MV = torch.mul(target_MV, target.share[:, None], out=self.scaled[: len(target_MV)])
                torch.sum(torch.minimum(scaled_MV, logits_MV, out=scaled_MV), -1, out=acceptance)
            if target.log is not None:
                divergences.measure_rows(logits_MV, target_MV, target.log, soft, self.measured[MEASURED:, span])
            torch.sub(logits_MV, target_MV, out=target_MV)
            torch.linalg.vector_norm(target_MV, 1, dim=-1, out=distance)
            if target.share is None:
                acceptance.copy_((1 - distance / 2).clamp_(0, 1))

    def _logits_gradient(self, span: slice, q_MV: Tensor, target: "TargetProbabilities | None") -> Tensor:
        """Return the gradient of each row's loss, without its weight, in the place of q or of q − p."""
        terms = self.terms
        if target is not None and target.log is not None:
            overlap_M = self.measured[-1, span]
            grad_MV = divergences.gradient(terms, q_MV, target.chances, target.log, overlap_M)
        elif target is None or not terms.held:
            grad_MV = q_MV if terms.cross_entropy == 1 else q_MV.mul_(terms.cross_entropy)
        elif terms.total_variation:
            grad_MV = self._variation_gradient(q_MV, target.chances)
        else:
            grad_MV = target.chances  # q − p by now
            if terms.soft_cross_entropy != 1:
                grad_MV.mul_(terms.soft_cross_entropy)
            if terms.cross_entropy:
                grad_MV.add_(q_MV, alpha=terms.cross_entropy)
        if terms.cross_entropy:
            labels_M1 = self.labels[span, None]
            grad_MV.scatter_add_(1, labels_M1, grad_MV.new_full(labels_M1.shape, -terms.cross_entropy))
        return grad_MV

    def _variation_gradient(self, q_MV: Tensor, difference_MV: Tensor) -> Tensor:
        """Return q⊙(α + β·(s − ⟨s, q⟩)) + γ·(q − p), in the place of q − p."""
        terms = self.terms
        if terms.soft_cross_entropy:
            soft_MV = difference_MV * terms.soft_cross_entropy
        sign_MV = difference_MV.sign_()
        shift_M = terms.cross_entropy - terms.total_variation * torch.linalg.vecdot(sign_MV, q_MV)
        torch.add(shift_M[:, None], sign_MV, alpha=terms.total_variation, out=sign_MV)
        grad_MV = sign_MV.mul_(q_MV)
        return grad_MV.add_(soft_MV) if terms.soft_cross_entropy else grad_MV

    def _uncap(self, grad_MV: Tensor) -> Tensor:
        """Turn the gradient of softcapped logits into that of the raw ones: times 1 − tanh²."""
        if self.softcap is None:
            return grad_MV
        tanh_MV = self.tanh[: len(grad_MV)]
        return grad_MV.addcmul_(grad_MV * tanh_MV, tanh_MV, value=-1)

    def _loss(self) -> Tensor:
        return torch.dot(self.rows.weights.to(self.dtype), row_loss(self.terms, self.measured))


@dataclass(frozen=True, slots=True)
class TargetProbabilities:
    """What the target says at the positions of a chunk's rows."""

    chances: Tensor
    """`(M, V)` p, of the vocabulary that the draft's head knows."""
    best: Tensor
    """`(M,)` the target's most likely token, as the head numbers it; −1: one that it does not know."""
    share: Tensor | None
    """`(M,)` chance that the target gives to all tokens that the head knows; None: not asked, or all."""
    log: Tensor | None
    """`(M, V)` log p, and then log(q / p); None: no term reads it."""
