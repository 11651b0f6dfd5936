"""The terms beside cross-entropies and total variation, of a chunk's rows, in torch's functions.

Their gradients with respect to the logits, with r = log(q / p) and s = sign(q − p):

    forward_kl      q − p
    reverse_kl      q⊙(r − ⟨r, q⟩)
    jensen_shannon  q⊙(u − ⟨u, q⟩), u = ½·log(2q / (p + q)) = ½·(log 2 − softplus(−r))
    log_acceptance  ½·q⊙(s − ⟨s, q⟩) / a, and 0 where a = Σ min(p, q) is below the least that counts
    lk_hybrid       λ·(q − p) + (1 − λ)·½·q⊙(s − ⟨s, q⟩)

Legend: M rows of a chunk, N rows, V vocabulary of the head.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from deepspec.losses.terms import LEAST_ACCEPTANCE, Terms

MEASURED = ("forward_kl", "reverse_kl", "jensen_shannon", "overlap")
"""What is measured of each row: the divergences, and Σ min(p, q)."""
_MOST = 1e30
"""Where one of two chances is 0, |log(q / p)| is this, times which 0 is still 0."""


def ratio(logits_MV: Tensor, log_p_MV: Tensor, normalizer_M: Tensor) -> Tensor:
    """Return log(q / p), in the place of log p."""
    torch.sub(logits_MV, log_p_MV, out=log_p_MV).sub_(normalizer_M[:, None])
    return log_p_MV.nan_to_num_(nan=0.0, posinf=_MOST, neginf=-_MOST)


def measure_rows(q_MV: Tensor, p_MV: Tensor, ratio_MV: Tensor, soft_M: Tensor, out_4M: Tensor) -> None:
    """Fill in `MEASURED`.

    Args:
        q_MV: of the draft.
        p_MV: of the target.
        ratio_MV: log(q / p).
        soft_M: soft cross-entropy.
        out_4M: where to write.
    """
    forward, reverse, shannon, overlap = out_4M.unbind()
    torch.sub(soft_M, torch.special.entr(p_MV).sum(-1), out=forward)
    torch.linalg.vecdot(q_MV, ratio_MV, out=reverse)
    beside_MV = softplus(-ratio_MV)  # log(2m / q)
    of_q = torch.linalg.vecdot(q_MV, math.log(2) - beside_MV)
    of_p = torch.linalg.vecdot(p_MV, math.log(2) - beside_MV.add_(ratio_MV))
    torch.mul(of_q + of_p, 0.5, out=shannon)
    torch.sum(torch.minimum(p_MV, q_MV), -1, out=overlap)


def loss(terms: Terms, measured_4N: Tensor) -> Tensor:
    """Return the loss of each row by these terms alone, `(N,)`."""
    forward, reverse, shannon, overlap = measured_4N.unbind()
    mixed = torch.exp(-terms.lk_sharpness * overlap)
    return (
        terms.forward_kl * forward
        + terms.reverse_kl * reverse
        + terms.jensen_shannon * shannon
        - terms.log_acceptance * overlap.clamp(min=LEAST_ACCEPTANCE).log()
        + terms.lk_hybrid * (mixed * forward + (1 - mixed) * (1 - overlap))
    )


def gradient(terms: Terms, q_MV: Tensor, difference_MV: Tensor, ratio_MV: Tensor, overlap_M: Tensor) -> Tensor:
    """Return the gradient of all terms but the label's part of the cross-entropy, `(M, V)`, in the place of log(q / p).

    Args:
        terms: factors.
        q_MV: of the draft.
        difference_MV: q − p.
        ratio_MV: log(q / p).
        overlap_M: Σ min(p, q).
    """
    soft_M, variation_M = _factors(terms, overlap_M)
    slope_MV = _slope(terms, ratio_MV).addcmul_(variation_M[:, None], difference_MV.sign())
    shift_M = terms.cross_entropy - torch.linalg.vecdot(slope_MV, q_MV)
    return slope_MV.add_(shift_M[:, None]).mul_(q_MV).addcmul_(soft_M[:, None], difference_MV)


def _factors(terms: Terms, overlap_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return by what each row multiplies the gradients of soft cross-entropy and of ‖q − p‖₁."""
    mixed_M = torch.exp(-terms.lk_sharpness * overlap_M)
    soft_M = terms.soft_cross_entropy + terms.forward_kl + terms.lk_hybrid * mixed_M
    kept_M = torch.where(overlap_M >= LEAST_ACCEPTANCE, 1 / overlap_M, 0.0)
    halves_M = terms.log_acceptance * kept_M + terms.lk_hybrid * (1 - mixed_M)
    return soft_M, terms.total_variation + halves_M / 2


def _slope(terms: Terms, ratio_MV: Tensor) -> Tensor:
    """Return ∂ℓ/∂q by the terms that read log(q / p), in its place."""
    if not terms.jensen_shannon:
        return ratio_MV.mul_(terms.reverse_kl)
    bent_MV = softplus(-ratio_MV).neg_().add_(math.log(2))
    return ratio_MV.mul_(terms.reverse_kl).add_(bent_MV, alpha=terms.jensen_shannon / 2)
