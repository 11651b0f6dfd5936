"""The chance of one token as an engine samples: temperature, then min-p, top-k and top-p, as vLLM orders them.

Legend: M rows, V vocabulary.
"""

import torch
from torch import Tensor

from deepspec.target_cache.facts import Sampled

LIKELIEST = 256
"""Tokens that are sorted for top-p; where they do not hold its share, all are."""


def chances(logits_MV: Tensor, tokens_M: Tensor, sampled: Sampled) -> Tensor:
    """Return the chance that a token is drawn, `(M,)`: 0 where it is cut off.

    Args:
        logits_MV: fp32; they are divided by the temperature in place.
        tokens_M: one a row.
        sampled: at a temperature above 0.
    """
    logits_MV.div_(sampled.temperature)
    own_M = logits_MV.gather(1, tokens_M[:, None])[:, 0]
    floor_M = _floor(logits_MV, sampled)
    if floor_M is None:
        return (own_M - logits_MV.logsumexp(1)).exp()
    kept_M = own_M >= floor_M
    logits_MV.masked_fill_(logits_MV < floor_M[:, None], -torch.inf)
    return torch.where(kept_M, (own_M - logits_MV.logsumexp(1)).exp(), 0.0)


def _floor(logits_MV: Tensor, sampled: Sampled) -> Tensor | None:
    """Return the least logit that is not cut off, `(M,)`; None where nothing is."""
    size = logits_MV.shape[1]
    floors = []
    if sampled.min_p > 0:
        floors.append(logits_MV.amax(1) + torch.tensor(sampled.min_p).log().item())
    if 0 < sampled.top_k < size:
        floors.append(logits_MV.topk(sampled.top_k, dim=1).values[:, -1])
    floor_M = torch.stack(floors).amax(0) if floors else None
    if sampled.top_p < 1:
        floor_M = _nucleus(logits_MV, floor_M, sampled.top_p, min(LIKELIEST, size))
    return floor_M


def _nucleus(logits_MV: Tensor, floor_M: Tensor | None, top_p: float, count: int) -> Tensor:
    """Return the least logit of the likeliest tokens that hold a share of what is above the floor, `(M,)`."""
    left_MV = logits_MV if floor_M is None else logits_MV.masked_fill(logits_MV < floor_M[:, None], -torch.inf)
    sorted_MN = left_MV.topk(count, dim=1).values
    shares_MN = (sorted_MN - left_MV.logsumexp(1, keepdim=True)).exp()
    before_MN = shares_MN.cumsum(1) - shares_MN
    inside_MN = (before_MN < top_p) & (sorted_MN > -torch.inf)
    if count < logits_MV.shape[1] and bool((before_MN[:, -1] + shares_MN[:, -1] < top_p).any()):
        return _nucleus(logits_MV, floor_M, top_p, logits_MV.shape[1])
    return sorted_MN.gather(1, inside_MN.sum(1, keepdim=True) - 1)[:, 0]
