"""Which positions of a sample become anchors of blocks: drawn anew every epoch, the same on every machine.

Legend: B samples, T positions, N anchors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.formats.records import Batch


def draw_anchors(batch: Batch, num_anchors: int, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return anchors and which of them are real, `(B, N)` each, N no larger than the fullest sample needs.

    A sample's anchors depend on its key and its own tokens alone: not on the batch, its padding or the rank.

    Args:
        batch: the samples.
        num_anchors: at most so many each.
        keys: a function of (seed, epoch, sample id) each.
    """
    device, longest = batch.loss_mask.device, batch.loss_mask.shape[1]
    scores_BT = torch.ones(len(keys), max(longest - 1, 0))
    for row, (key, length) in enumerate(zip(keys, batch.lengths.tolist(), strict=True)):
        generator = torch.Generator().manual_seed(key)
        scores_BT[row, : length - 1] = torch.rand(length - 1, generator=generator)
    anchors_BN, keep_BN = choose_anchors(candidates(batch.loss_mask), scores_BT.to(device), num_anchors)
    used = max(int(keep_BN.sum(1).max()), 1)
    return anchors_BN[:, :used], keep_BN[:, :used]


def candidates(loss_mask_BT: Tensor) -> Tensor:
    """Return where an anchor may lie, `(B, T − 1)` bool: it and the next token are supervised."""
    return loss_mask_BT[:, :-1] & loss_mask_BT[:, 1:]


def choose_anchors(candidates_BT: Tensor, scores_BT: Tensor, num_anchors: int) -> tuple[Tensor, Tensor]:
    """Return the candidates of lowest score by position, `(B, N)`, and which of the N are real; the others are 0."""
    length = candidates_BT.shape[1]
    best_BN = torch.where(candidates_BT, scores_BT, 2.0).argsort(dim=1, stable=True)[:, :num_anchors]
    real_BN = candidates_BT.gather(1, best_BN)
    sorted_BN = torch.where(real_BN, best_BN, length).sort(dim=1).values
    sorted_BN = torch.nn.functional.pad(sorted_BN, (0, num_anchors - sorted_BN.shape[1]), value=length)
    keep_BN = sorted_BN < length
    return sorted_BN.where(keep_BN, 0), keep_BN
