"""What a draft is: everything needed to build one without weights. No torch: a plan is checked by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deepspec.families.shape import BlockShape
from deepspec.formats.recipe import TRAITS, AlgorithmName, Layout, MarkovHeadKind

WindowForm = Literal["slot", "anchor", "causal"]
"""What a window of a block draft is: counted from each slot, its own position among it, in a block that is read in both
directions; or, as speculators trains, so many positions before the block's anchor for every slot, in a block that is
read in both directions, or by each slot through itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EagleNorms:
    """Norms by which EAGLE-3.1, and public EAGLE-3 drafts, differ from EAGLE-3."""

    norm_before_fc: bool = False
    """One norm of all captured states side by side, before they are fused."""
    fc_norm: bool = False
    """One norm of each captured layer's state, before they are fused."""
    norm_before_residual: bool = False
    """Whether the block's residual is the normed state instead of the state itself."""
    norm_output: bool = False
    """Whether a step hands its normed output on instead of the output itself."""


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
    head_bias: bool = False
    """Whether the head has a bias, the target's, as frozen as the head."""
    num_target_layers: int
    target_layer_ids: tuple[int, ...]
    """Captured layers in order; k is the output of decoder layer k, −1 the embedding's output, and one past the last
    layer the state behind the target's final norm."""
    block_size: int = 7
    """Slots of a block (those of blocks), or tokens of a pass (peagle); eagle3, mtp: tokens proposed one by
    one, this many by default."""
    layout: Layout = "shift"
    """Which token a slot of a block predicts."""
    mask_token_id: int | None = None
    """Stands for the tokens that are not known yet; None for eagle3 and mtp."""
    markov_rank: int = 0
    markov_head: MarkovHeadKind = "vanilla"
    confidence_head: bool = False
    confidence_with_markov: bool = False
    conv_kernel_size: int = 0
    """Taps of the convolution over a block's slots; 0: none is (dflash2)."""
    conv_group_size: int = 16
    """Channels that share the dynamic part of its kernel."""
    selector_rank: int = 0
    """Rank of the selector among a slot's most likely tokens; 0: there is none (dflash2)."""
    selector_top_k: int = 0
    """How many tokens it chooses among."""
    xpress_rank: int = 0
    """Rank of the refiner of a block's logits; 0: there is none (xpress)."""
    xpress_mlp_ratio: int = 0
    """How many times wider its MLP is."""
    norms: EagleNorms = EagleNorms()
    """Where Eagle3 and P-EAGLE have norms beside those of their blocks."""
    train_embedding: bool = False
    """Whether the token embedding is the draft's own, trained; else the target's (peagle)."""
    window: int | None = None
    """Positions that layers with a window see, a query's own among them; None: no layer has one."""
    window_layers: frozenset[int] = frozenset()
    """Which layers have it."""
    window_form: WindowForm = "slot"
    style: str = "qwen3"
    """Name of the block's style, as `architectures` in config.json tells it: qwen3, llama, gemma4 or qwen3_5."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The config.json that this was read from or will extend; keys that mean nothing here survive in it."""

    @property
    def first_slot(self) -> int:
        """Return the first slot of a block that predicts a token."""
        return 1 if self.layout == "fill_in" else 0

    @property
    def drafts(self) -> int:
        """Return how many tokens are proposed in a round, by default for Eagle3, at most for all others."""
        return self.block_size - self.first_slot

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Return the window of each layer; None: it sees everything before it."""
        return tuple(self.window if layer in self.window_layers else None for layer in range(self.num_layers))

    @property
    def reaches(self) -> tuple[int | None, ...]:
        """Return the window of each layer counted from a slot, its own position among it, whatever the window's form.

        Where all slots see as far back as the block's anchor, it is counted from the first.
        """
        beside = 0 if self.window_form == "slot" else 1
        return tuple(None if window is None else window + beside for window in self.windows)

    @property
    def num_captured(self) -> int:
        """Return how many target layers are captured."""
        return len(self.target_layer_ids)

    @property
    def reads_normed(self) -> bool:
        """Return whether MTP heads read the target's last state behind its final norm, as engines hand it to them."""
        return self.target_layer_ids == (self.num_target_layers,)

    @property
    def num_fused(self) -> int:
        """Return how many states are projected to one: those captured; of MTP heads a token's and the captured one."""
        return 2 if TRAITS[self.algorithm].shipped else self.num_captured

    @property
    def reduced_vocabulary(self) -> bool:
        """Whether the head knows only a part of the target's tokens."""
        return self.draft_vocab_size != self.vocab_size
