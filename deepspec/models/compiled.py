"""A draft's blocks compiled for a card: what is elementwise between the products becomes a few kernels.

Norms, rotations, gates and residuals are read and written once each instead of five to ten times, and what the backward
pass can make again from a product's inputs is not kept. Attention itself is compiled in flex.py.
"""

from typing import Any

import torch
from torch import nn

from deepspec.models.block import Block
from deepspec.models.flex import allow_compilations


def compile_blocks(model: nn.Module) -> None:
    """Compile what a model's blocks do around attention, for any number of rows and positions."""
    allow_compilations()
    for block in (part for part in model.modules() if isinstance(part, Block)):
        attention: Any = block.self_attn
        attention.keys_values = torch.compile(attention.keys_values, dynamic=True)
        attention.queries = torch.compile(attention.queries, dynamic=True)
        changed: Any = block
        changed.finish = torch.compile(block.finish, dynamic=True)
