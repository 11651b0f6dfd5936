"""How weights lie in memory: on CPU, packed by oneDNN for the few rows that decoding multiplies.

A round multiplies as many rows as it verifies. What is read from memory is the same for one row and for eight, so both
should take the same time; with weights as they come, four rows take three times as long as one. The operators are those
that `torch.compile` calls on a CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

ROWS = 8
"""Rows that weights are packed for; any other number is right, too."""
OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
"""Of torch, private: where one is not there, weights stay as they come."""
FEWEST = 4
"""Rows that are multiplied at least: fewer take longer, one row a fourth more."""


class PackedLinear(nn.Linear):
    """A linear layer of a model that is only read from, with a packed weight: `weight.to_dense()` gives the values."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x Wᵀ + b."""
        rows = input.reshape(-1, input.shape[-1])
        count = len(rows)
        if count < FEWEST:
            rows = pad(rows, (0, 0, 0, FEWEST - count))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out[:count].view(*input.shape[:-1], -1)


def lay_out_for_decoding(model: nn.Module) -> None:
    """Pack the weights of linear layers where that helps; values and shapes stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and _packs(module.weight):
            packed: Any = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)
            module.weight = nn.Parameter(packed, requires_grad=False)
            module.__class__ = PackedLinear


def dense(weight: Tensor) -> Tensor:
    """Return a weight's values in rows, packed or not."""
    return weight.to_dense() if weight.is_mkldnn else weight


def _packs(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    narrow = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(narrow or weight.dtype == torch.float32)
