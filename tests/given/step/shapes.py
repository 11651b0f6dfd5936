"""What the benchmark of a training step on a card trains: drafts for a target of the shape of Qwen3-4B, random weights.

Nothing of the library is imported here: an earlier one reads it, too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TARGET = {
    "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "num_hidden_layers": 36,
    "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
LAYERS = (1, 9, 17, 25, 33)
SMALL = {
    **TARGET, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 512, "num_hidden_layers": 8,
}  # fmt: skip
SMALL_LAYERS = (0, 1, 2, 4, 5)
PROMPT = 32
"""Tokens of a sample that are not trained on."""
SLOTS, ANCHORS, RANK = 7, 512, 256
"""Slots of a block or steps of Eagle3, anchors of a sample, Markov rank: the defaults of the papers."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a target and its samples."""

    target: dict[str, object]
    layers: tuple[int, ...]
    length: int
    anchors: int

    @property
    def size(self) -> int:
        """Return the hidden size."""
        return int(str(self.target["hidden_size"]))

    @property
    def vocab(self) -> int:
        """Return the vocabulary."""
        return int(str(self.target["vocab_size"]))


def shape_of(algorithm: str, *, small: bool) -> Shape:
    """Return the shape that an algorithm is measured at; a small one shows that the benchmark runs."""
    if small:
        return Shape(SMALL, SMALL_LAYERS, 256, 16)
    return Shape(TARGET, LAYERS, 2048 if algorithm == "eagle3" else 4096, ANCHORS)


def states(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids `(T,)`, captured states `(T, A·D)` and last states `(T, D)` of a sample, bf16."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, shape.vocab - 10, (shape.length,), generator=generator)
    hidden = torch.randn(shape.length, len(shape.layers) * shape.size, generator=generator).to(torch.bfloat16)
    return ids, hidden, torch.randn(shape.length, shape.size, generator=generator).to(torch.bfloat16)


def loss_mask(shape: Shape) -> Tensor:
    """Return which tokens are trained on, `(T,)`."""
    mask = torch.ones(shape.length, dtype=torch.bool)
    mask[:PROMPT] = False
    return mask
