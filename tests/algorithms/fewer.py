"""Supervision of fewer positions than an algorithm chose."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepspec.algorithms.chains import ChainSupervision
from deepspec.algorithms.rows import order_by_target
from deepspec.algorithms.slots import BlockSupervision


def only(part: Any, where: Tensor) -> Any:
    """Return what is supervised where it is wanted, too."""
    supervised = part.supervised & where
    return replace(part, supervised=supervised, order=order_by_target(supervised, targets(part)))


def targets(part: Any) -> Tensor:
    if isinstance(part, BlockSupervision):
        return part.labels - 1
    if isinstance(part, ChainSupervision):
        return part.anchors + part.depths + 1
    _, steps, length = part.supervised.shape
    return (torch.arange(length) + 1 + torch.arange(steps)[:, None]).expand_as(part.supervised)
