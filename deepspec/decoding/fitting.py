"""How many rows are decoded together where nobody says: on a card, as many as its memory holds."""

import torch

from deepspec.proposers.propose import Proposer
from deepspec.target.load import Target

USUAL = 8
"""Rows on a CPU, and of targets that read one row after another."""
MOST = 64
"""Rows on a card: far beyond, a pass computes longer than it reads weights."""
KEPT = 0.6
"""Share of a card's free memory that rows may take; the rest is left for spans, masks and what else a pass holds."""
BESIDE = 3
"""Copies of a proposal's logits in fp32 that a round holds: the draft's, the target's, and what is made of them."""
WIDE = 3
"""Tensors as wide as a block's MLP that lie there while a prompt is read: gate, up, and their product."""


def fitting_rows(target: Target, proposer: Proposer, capacity: int, prompt: int) -> int:
    """Return how many rows fit into a card's memory: a power of two, at most `MOST`.

    Args:
        target: on its device.
        proposer: the draft's.
        capacity: positions of a row.
        prompt: those of them that are read at once in the beginning, into memories of their own.
    """
    if target.device.type != "cuda":
        return USUAL
    free = min(_free(each) for each in target.devices if each.type == "cuda")  # as if a row lay on one card
    return rows_within(int(KEPT * free), row_bytes(target, proposer, capacity, prompt))


def _free(card: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(card)
    return free + torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)


def rows_within(memory: int, row: int) -> int:
    """Return how many rows of so many bytes fit into memory: a power of two, at most `MOST`, at least 1."""
    fit = max(1, min(MOST, memory // row))
    return 1 << (fit.bit_length() - 1)


def row_bytes(target: Target, proposer: Proposer, capacity: int, prompt: int) -> int:
    """Return the bytes that a row takes, arguments as in `fitting_rows`.

    Keys and values of target and draft, and those of the prompt once more, until they are moved; the prompt's captured
    states, and what lies between two layers; logits.
    """
    shape, size = target.shape, target.dtype.itemsize
    layers = target.num_layers + len(proposer.layers)  # no draft has more layers of its own than it reads
    kept = 2 * layers * shape.block.num_kv_heads * shape.block.head_dim
    states = (len(proposer.layers) + 1) * target.hidden_size
    logits = (proposer.slots + 1) * target.vocab_size * BESIDE * torch.float32.itemsize
    return (capacity * kept + prompt * (kept + states + WIDE * shape.block.intermediate_size)) * size + logits
