"""What a draft is: everything needed to build one without weights. No torch: a plan is checked by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepspec.families.shape import BlockShape
from deepspec.formats.recipe import AlgorithmName, MarkovHead


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftConfig:
    """One draft model."""

    algorithm: AlgorithmName
    block: BlockShape
    num_layers: int
    vocab_size: int
    """Of the target."""
    draft_vocab_size: int
    """Of the draft's head; below `vocab_size` only where the vocabulary is reduced."""
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    """Captured layers in order; k is the output of decoder layer k, −1 the embedding's output."""
    block_size: int = 7
    """Tokens that one pass proposes (dspark, dflash); Eagle3: proposed one by one, this many by default."""
    mask_token_id: int | None = None
    """Fills the slots after the anchor; None for eagle3."""
    markov_rank: int = 0
    markov_head: MarkovHead = "vanilla"
    confidence_head: bool = False
    confidence_with_markov: bool = False
    style: str = "qwen3"
    """Name of the block's style, as `architectures` in config.json tells it: qwen3, llama or gemma4."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The config.json that this was read from or will extend; keys that mean nothing here survive in it."""

    @property
    def num_captured(self) -> int:
        """Return how many target layers are captured."""
        return len(self.target_layer_ids)

    @property
    def reduced_vocabulary(self) -> bool:
        """Whether the head knows only a part of the target's tokens."""
        return self.draft_vocab_size != self.vocab_size
