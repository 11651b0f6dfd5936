"""DFlash 2's selector in training: which of a slot's k most likely tokens follows the token before.

Where the label is not among them it takes the place of the last. Nothing is detached: the gradient flows into the
selector, and through the candidates' logits and the slot's state into the backbone.

Legend: R rows, M rows of a chunk, k candidates, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from deepspec.losses.rows import RowLosses, Rows
from deepspec.models.draft import BlockDraft

CHUNK_ROWS = 128
"""Rows of which the head's rows of their candidates are held at a time: `(M, k, D)`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the selector makes of each row, `(R,)`."""

    cross_entropy: Tensor
    """Of the label among the candidates; the one that is differentiated."""
    right: Tensor
    """1 where the label scores highest, else 0."""
    found: Tensor
    """1 where the label was among the k most likely tokens, else 0."""
    candidates: Tensor
    """`(R, k)`: the candidates, the label among them."""
    scores: Tensor
    """`(R, k)`."""


def selector_loss(model: BlockDraft, rows: Rows, measured: RowLosses, previous_R: Tensor) -> Choice:
    """Return what the selector makes of rows.

    Args:
        model: has a selector.
        rows: the supervised slots.
        measured: their labels and candidates.
        previous_R: the true token before each slot's prediction.

    Raises:
        RuntimeError: the draft has no selector, or no candidates were noted.
    """
    selector, candidates_Rk, labels_R = model.candidate_selector, measured.candidates, measured.labels
    if selector is None or candidates_Rk is None or labels_R is None:
        raise RuntimeError("a selector needs the candidates and labels of its rows; ask chunked_loss for them")
    found_R = (candidates_Rk == labels_R[:, None]).any(-1)
    last_R = candidates_Rk[:, -1].where(found_R, labels_R)
    candidates_Rk = torch.cat((candidates_Rk[:, :-1], last_R[:, None]), dim=-1)
    places_R = (candidates_Rk == labels_R[:, None]).long().argmax(-1)
    scores_Rk = unary(model, rows.hidden, candidates_Rk) + selector(rows.hidden, previous_R, candidates_Rk).float()
    return Choice(
        cross_entropy=cross_entropy(scores_Rk, places_R, reduction="none"),
        right=(scores_Rk.argmax(-1) == places_R).float(),
        found=found_R.float(),
        candidates=candidates_Rk,
        scores=scores_Rk,
    )


def selected_logits(model: BlockDraft, logits_MV: Tensor, hidden_MD: Tensor, previous_M: Tensor) -> Tensor:
    """Return what a draft's selector makes of the logits of slots, `(M, V)`: −∞ but for the k likeliest tokens.

    Args:
        model: has a selector.
        logits_MV: the draft's own, softcapped where the family does.
        hidden_MD: states after the final norm.
        previous_M: the token before each slot's prediction.

    Raises:
        RuntimeError: the draft has no selector.
    """
    if model.candidate_selector is None:
        raise RuntimeError("this draft has no selector; ask candidate_selector before")
    best = logits_MV.float().topk(model.config.selector_top_k, dim=-1)
    scores_Mk = best.values + model.candidate_selector(hidden_MD, previous_M, best.indices).float()
    return torch.full_like(logits_MV, -torch.inf).scatter(1, best.indices, scores_Mk.to(logits_MV.dtype))


def unary(model: BlockDraft, hidden_RD: Tensor, candidates_Rk: Tensor) -> Tensor:
    """Return the draft's own logits of candidates, `(R, k)` fp32; the head's rows are gathered again going backward."""
    parts = [
        checkpoint(_unary, model, hidden_RD[span], candidates_Rk[span], use_reentrant=False)
        for span in _spans(len(hidden_RD))
    ]
    return torch.cat(parts) if parts else hidden_RD.new_zeros(candidates_Rk.shape, dtype=torch.float32)


def _unary(model: BlockDraft, hidden_MD: Tensor, candidates_Mk: Tensor) -> Tensor:
    weights_MkD = model.lm_head.weight[candidates_Mk].float()
    logits_Mk = torch.einsum("md,mkd->mk", hidden_MD.float(), weights_MkD)
    if model.lm_head.bias is not None:
        logits_Mk = logits_Mk + model.lm_head.bias[candidates_Mk].float()
    cap = model.config.logit_softcap
    return logits_Mk if cap is None else cap * torch.tanh(logits_Mk / cap)


def _spans(rows: int) -> Iterator[slice]:
    for start in range(0, rows, CHUNK_ROWS):
        yield slice(start, start + CHUNK_ROWS)
