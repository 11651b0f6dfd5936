"""Which positions of a sample become anchors of blocks: drawn anew every epoch, the same on every machine.

Legend: B rows of samples, T positions, N anchors.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from deepspec.records.batch import Tokens


def draw_anchors(batch: Tokens, num_anchors: int, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return anchors and which of them are real, `(B, N)` each, N no larger than the fullest row needs.

    A sample's anchors depend on its key and its own tokens alone: not on the batch, its padding, the rank, or what
    else lies in its row.

    Args:
        batch: the samples.
        num_anchors: at most so many for each sample.
        keys: a function of (seed, epoch, sample id) each.
    """
    loss_mask_BT = batch.loss_mask.cpu()
    drawn_BT = torch.zeros_like(loss_mask_BT)
    for (row, start, end), key in zip(batch.spans(), keys, strict=True):
        scores_T = torch.rand(end - start - 1, generator=torch.Generator().manual_seed(key))
        wanted_T = candidates(loss_mask_BT[row, None, start:end])
        anchors_N, keep_N = choose_anchors(wanted_T, scores_T[None], num_anchors)
        drawn_BT[row, start + anchors_N[keep_N]] = True
    used = max(int(drawn_BT.sum(1).max()), 1)
    anchors_BN, keep_BN = choose_anchors(drawn_BT, torch.zeros(drawn_BT.shape), used)
    return anchors_BN.to(batch.loss_mask.device), keep_BN.to(batch.loss_mask.device)


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


def position_groups(wanted_BT: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chosen positions, at most so many of a row at a time: they and which are real, `(B, N)` each; others are 0.

    Args:
        wanted_BT: which are chosen.
        most: positions of a row in a group.
    """
    place_BT = wanted_BT.cumsum(1) - 1
    for start in range(0, int(wanted_BT.sum(1).max()), most):
        group_BT = wanted_BT & (place_BT >= start) & (place_BT < start + most)
        widest = int(group_BT.sum(1).max())
        yield choose_anchors(group_BT, torch.zeros(group_BT.shape, device=group_BT.device), widest)
