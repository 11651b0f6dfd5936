"""Where a proposal is cut because the draft does not trust itself.

Legend: B rows, K slots.
"""

import torch
from torch import Tensor

from deepspec.decoding.sampling import Proposal
from deepspec.rounds.decoded import Settings


def cut(proposal: Proposal, settings: Settings) -> Proposal:
    """Return the proposal up to the first slot whose confidence is below the threshold."""
    if settings.confidence_threshold <= 0 or proposal.confidence is None:
        return proposal.cut(proposal.lengths)
    chance = calibrated(proposal.confidence, settings.confidence_temperatures).sigmoid()
    if settings.threshold_mode == "cumulative":
        chance = chance.cumprod(1)
    trusted = (chance >= settings.confidence_threshold).long().cumprod(1).sum(1)
    return proposal.cut(torch.minimum(trusted, proposal.lengths))


def calibrated(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return confidence logits `(B, K)` divided by their slot's temperature; slots without one keep theirs."""
    if not temperatures:
        return logits
    scale = torch.ones(logits.shape[1], dtype=logits.dtype, device=logits.device)
    known = temperatures[: logits.shape[1]]
    scale[: len(known)] = torch.tensor(known, dtype=logits.dtype, device=logits.device)
    return logits / scale
