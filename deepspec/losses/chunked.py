"""Losses over a large vocabulary, in chunks of rows: gradients are taken in the same pass, nothing is recomputed.

A row is one supervised position: a draft distribution q = softmax(head(h) + W2 m) against a target distribution
p = softmax(head(t)). Rows that share a target position lie side by side, so p is computed once for all of them. No
tensor of rows × vocabulary outlives a chunk: what remains is the gradient of h, of m and of W2. Between the products
of a chunk work torch's functions, or on CUDA a kernel in Triton (triton_chunks.py).

A head may know a part of the target's vocabulary. Then p is restricted to that part and sums to 1 there, for all loss
terms; where the target's whole head is given, too, acceptance is counted against what the target really says.

With row weights w and the terms' factors (terms.py), the loss is

    Σ w · (α·CE(label, q) + β·‖q − p‖₁ + γ·CE(p, q))

and its gradient with respect to the logits, where s = sign(q − p):

    w · (α·(q − onehot) + β·q⊙(s − ⟨s, q⟩) + γ·(q − p))

The further terms stand in divergences.py.

Legend: N rows, P distinct target positions, M rows of a chunk, D hidden size, r Markov rank, V vocabulary of the head.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from deepspec.kernels import kernel_of
from deepspec.losses.chunks import Chunks
from deepspec.losses.rows import Head, RowLosses, Rows
from deepspec.losses.terms import Terms

CHUNK_ROWS, CHUNK_ROWS_ON_CPU = 896, 128
"""Rows of a chunk: as few as keep matrix products efficient."""


def chunked_loss(
    rows: Rows,
    head: Head,
    terms: Terms,
    *,
    measure: bool = True,
    candidates: int = 0,
    chunk_rows: int | None = None,
) -> tuple[Tensor, RowLosses]:
    """Return the weighted loss, differentiable in hidden, markov and W2, and what was measured of each row.

    Args:
        rows: the supervised positions.
        head: the frozen head.
        terms: factors of the loss terms.
        measure: whether distances to p are wanted though no term needs them; they cost the target's logits.
        candidates: how many of each row's most likely tokens are wanted.
        chunk_rows: most rows of a chunk; None: `CHUNK_ROWS`, or `CHUNK_ROWS_ON_CPU`.
    """
    target = measure or terms.held or rows.labels is None
    most = chunk_rows or (CHUNK_ROWS_ON_CPU if rows.hidden.device.type == "cpu" else CHUNK_ROWS)
    cut = _chunks_of(rows, head)(rows, head, terms, with_target=target, most=most, candidates=candidates)
    if not torch.is_grad_enabled():  # within a Function it never is, and what it is given still asks for gradients
        loss, measured, _ = cut.run(with_gradients=False)
    else:
        loss, *measured = _ChunkedLoss.apply(rows.hidden, rows.markov, rows.markov_weight, cut)  # type: ignore[no-untyped-call]
    return loss, replace(RowLosses(*measured), labels=cut.labels, candidates=cut.candidates)


def _chunks_of(rows: Rows, head: Head) -> "type[Chunks]":
    """Return what works between the products: the target's whole head is for looks, which can take their time."""
    if rows.weights.dim() > 1:
        from deepspec.losses.readings import Readings  # which is made of these chunks

        return Readings
    if kernel_of(rows.hidden.device) == "torch" or rows.hidden.dtype == torch.float64 or head.whole is not None:
        return Chunks
    from deepspec.losses.triton_chunks import TritonChunks  # torch for CPUs comes without Triton

    return TritonChunks


class _ChunkedLoss(Function):
    """Runs the chunks once, forward; backward only scales what was found."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, markov_Nr: Tensor | None, markov_Vr: Tensor | None, chunks: Any) -> Any:
        """Return the loss and the rows' measurements."""
        del hidden_ND, markov_Nr, markov_Vr
        loss, measured, gradients = chunks.run(with_gradients=any(ctx.needs_input_grad))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*measured)
        return loss, *measured

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> Any:
        """Return the gradients found forward, scaled by the one that comes in."""
        scaled = [None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors]
        return *scaled, None
