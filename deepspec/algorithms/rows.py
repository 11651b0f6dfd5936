"""Supervised positions as rows for the chunked loss, and back.

Legend: R supervised positions, P distinct target positions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspec.formats.recipe import Objective
from deepspec.losses.rows import Head, RowLosses
from deepspec.models.draft import Draft
from deepspec.models.whole_head import Whole


@dataclass(frozen=True, slots=True)
class Order:
    """The supervised positions, those that share a target position side by side."""

    rows: Tensor
    """`(R,)` flat index into the grid of positions."""
    batch_rows: Tensor
    """`(R,)` row of the batch that each lies in."""
    target_index: Tensor
    """`(R,)` ascending index into the P target positions."""
    on_host: NDArray[np.int64]
    """The same in host memory, wherever the rest lies: where chunks begin and end is asked there."""
    target_batch_rows: Tensor
    """`(P,)`."""
    target_positions: Tensor
    """`(P,)`."""


def head_of(model: Draft, *, whole: bool) -> Head:
    """Return the head that a draft and its target share.

    Args:
        model: the draft.
        whole: whether acceptance is to be counted against all that the target says, where a draft of reduced
            vocabulary keeps the target's whole head.
    """
    every, known = model.target_head() if whole else None, model.known_ids()
    kept = None if every is None or known is None else Whole(weight=every, known=known, bias=model.target_head_bias)
    return Head(weight=model.lm_head.weight, bias=model.lm_head.bias, softcap=model.config.logit_softcap, whole=kept)


def divergences(objective: Objective) -> dict[str, float]:
    """Return the factors of the terms beside cross-entropies and total variation, as `Terms` takes them."""
    names = ("forward_kl", "reverse_kl", "jensen_shannon", "log_acceptance", "lk_hybrid", "lk_sharpness")
    return {name: getattr(objective, name) for name in names}


def diverged(measured: RowLosses) -> dict[str, Tensor]:
    """Return the divergences that were measured of rows, by name; nothing where none was."""
    names = ("forward_kl", "reverse_kl", "jensen_shannon")
    found = {name: getattr(measured, name) for name in names}
    return {name: values for name, values in found.items() if values is not None}


def order_by_target(supervised: Tensor, targets: Tensor) -> Order:
    """Return the order of the rows.

    Args:
        supervised: `(B, …)` bool, in host memory: how many there are is asked more than once.
        targets: `(B, …)` int64: the position of the target state that each is held against.
    """
    rows = supervised.flatten().nonzero()[:, 0]
    batch_rows = rows // max(supervised[0].numel(), 1)
    positions = targets.flatten()[rows]
    length = int(positions.max()) + 1 if len(positions) else 1
    keys, order = (batch_rows * length + positions).sort(stable=True)
    distinct, index = torch.unique_consecutive(keys, return_inverse=True)
    on_host: NDArray[np.int64] = index.cpu().numpy()
    return Order(rows[order], batch_rows[order], index, on_host, distinct // length, distinct % length)


def scattered(supervised: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return per-row values on the grid of positions, 0 where nothing is supervised."""
    grid = values.new_zeros(supervised.numel())
    grid[rows] = values
    return grid.view(supervised.shape)


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Return a quotient; 0 where there was nothing to count."""
    below = float(denominator)
    return float(numerator) / below if below else 0.0
