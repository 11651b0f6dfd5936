"""Where a proposal is cut because the draft does not trust itself.

Legend: B rows, K slots.
"""

from dataclasses import replace

import torch
from torch import Tensor

from deepspec.proposers.sampling import Proposal
from deepspec.rounds.decoded import Settings


def trusted(proposal: Proposal, settings: Settings) -> Proposal:
    """Return the proposal, meant up to the first slot whose confidence is below the threshold."""
    if settings.confidence_threshold <= 0 or proposal.confidence is None:
        return proposal
    chance = calibrated(proposal.confidence, settings.confidence_temperatures).sigmoid()
    if settings.threshold_mode == "cumulative":
        chance = chance.cumprod(1)
    kept = (chance >= settings.confidence_threshold).long().cumprod(1).sum(1)
    return replace(proposal, lengths=torch.minimum(kept, proposal.lengths))


def calibrated(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return confidence logits `(B, K)` divided by their slot's temperature; slots without one keep theirs."""
    if not temperatures:
        return logits
    scale = torch.ones(logits.shape[1], dtype=logits.dtype, device=logits.device)
    for slot, temperature in enumerate(temperatures[: logits.shape[1]]):
        scale[slot].fill_(temperature)  # not copied from the host, for which a device would wait
    return logits / scale
