"""How much each slot of a block weighs in the loss.

Legend: N blocks, K slots.
"""

import torch
from torch import Tensor

from deepspec.formats.recipe import Layout


def by_slot(size: int, decay: float, layout: Layout) -> Tensor:
    """Return exp(−d/γ) of each slot, `(K,)`, d how many drafted tokens come before it.

    Args:
        size: K.
        decay: γ; 0: all weigh the same.
        layout: of the block: where the first slot proposes nothing, it weighs nothing.
    """
    first = 1 if layout == "fill_in" else 0
    slots = torch.arange(size) - first
    weights = torch.exp(-slots / decay) if decay else torch.ones(size)
    return weights.where(slots >= 0, 0.0)


def dpace(cross_entropy_NK: Tensor, supervised_NK: Tensor, alpha: float) -> Tensor:
    """Return the D-PACE weights of slots, `(N, K)`, not differentiated.

    A slot is reached with the chance P that all before it, and it, are right; a wrong token costs all that come behind
    it. So slot k weighs Σ_{j ≥ k} P_j over the supervised slots, P_j = Π_{i ≤ j} s_i, where s is the draft's chance of
    the label, mixed with 1: (1 − α)·exp(−cross-entropy) + α.

    Args:
        cross_entropy_NK: of every slot; where it is not supervised, anything.
        supervised_NK: bool.
        alpha: α in (0, 1]; 1: how many supervised slots there are from k on.
    """
    chance_NK = torch.exp(-cross_entropy_NK.detach())
    mixed_NK = ((1 - alpha) * chance_NK + alpha).where(supervised_NK, 1.0)
    reached_NK = mixed_NK.cumprod(-1) * supervised_NK
    return reached_NK.flip(-1).cumsum(-1).flip(-1) * supervised_NK
