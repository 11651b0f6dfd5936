"""What a new draft shall look like and what it is trained for; no torch, so that specs can hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from deepspec.specs import Spec

AlgorithmName = Literal["dspark", "dflash", "dflash2", "xpress", "eagle3", "peagle", "mtp"]
MarkovHeadKind = Literal["vanilla", "gated", "rnn"]
Layout = Literal["shift", "fill_in"]
"""Which token slot k of a block behind anchor i proposes: i + k + 1; or i + k, and the first slot none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What sets an algorithm's drafts apart, where its name would otherwise be asked for."""

    blocks: bool = True
    """Whether a pass proposes a block of slots that read the context; else a draft reads tokens one by one as its
    target does, and each state beside its token."""
    parallel: bool = False
    """Whether such a draft reads mask tokens behind the last token, and so proposes all tokens in a pass."""
    heads: bool = False
    """Whether it has a Markov head and a confidence head."""
    convolved: bool = False
    """Whether its blocks are convolved over slots, and a selector chooses among candidates."""
    refined: bool = False
    """Whether a refiner corrects the logits of a whole block by the tokens before its slots."""
    shipped: bool = False
    """Whether they are heads that the target itself ships, which read its last state and go back into its files."""
    layout: Layout = "shift"
    """Of a block, where the recipe does not say."""
    num_layers: int = 5
    """Decoder blocks, where the recipe does not say; eagle3 and mtp have no other number of them."""

    @property
    def masked(self) -> bool:
        """Whether it reads a mask token, and so proposes no more tokens at a time than it was trained to."""
        return self.blocks or self.parallel


TRAITS: Mapping[AlgorithmName, Traits] = {
    "dspark": Traits(heads=True),
    "dflash": Traits(),
    "dflash2": Traits(convolved=True, layout="fill_in"),
    "xpress": Traits(refined=True, layout="fill_in"),
    "eagle3": Traits(blocks=False, num_layers=1),
    "peagle": Traits(blocks=False, parallel=True, num_layers=4),
    "mtp": Traits(blocks=False, shipped=True, num_layers=1),
}
"""Name -> what sets it apart."""


def layout_of(recipe: "DraftRecipe") -> Layout:
    """Return the layout of the blocks that a recipe describes."""
    return recipe.layout or TRAITS[recipe.algorithm].layout


def method_of(algorithm: AlgorithmName, layout: Layout) -> Literal["dspark", "dflash", "xpress", "eagle3", "mtp"]:
    """Return by what name engines serve a draft: DFlash that predicts from its anchor on is served as DSpark."""
    if TRAITS[algorithm].shipped:
        return "mtp"
    if not TRAITS[algorithm].blocks:
        return "eagle3"
    if TRAITS[algorithm].refined:
        return "xpress"
    return "dflash" if layout == "fill_in" else "dspark"


def drafts(recipe: "DraftRecipe", objective: "Objective") -> int:
    """Return how many tokens a draft of a recipe proposes at a time: eagle3 and mtp by default, others at most."""
    if not TRAITS[recipe.algorithm].masked:
        return objective.ttt_length
    return recipe.block_size - (layout_of(recipe) == "fill_in")


class DraftRecipe(Spec):
    """The shape of a new draft; everything else follows from its target."""

    algorithm: AlgorithmName = "dspark"
    shape: Literal["qwen3", "target"] = "qwen3"
    """Style of the decoder block: Qwen3's for every target, or the target's own; mtp has that of the target's heads."""
    num_layers: int | None = Field(default=None, gt=0)
    """Decoder blocks; None: 5 for those of blocks, 4 for peagle, 1 for eagle3 and mtp (the only choice there)."""
    block_size: int = Field(default=7, gt=0)
    """Slots of a block (dspark, dflash, dflash2, xpress): each proposes a token, but the first one in the layout
    fill_in; peagle: tokens of a pass."""
    layout: Layout | None = None
    """Which token a slot proposes; None: fill_in for dflash2 and xpress, as engines serve them; shift for dspark and
    dflash."""
    markov_head: MarkovHeadKind = "vanilla"
    markov_rank: int = Field(default=256, ge=0)
    """Rank of the Markov head; 0: none (dspark)."""
    confidence_head: bool = True
    """Whether a head learns the chance that a slot is accepted (dspark)."""
    confidence_with_markov: bool = True
    """Whether that head also sees the Markov embedding of the previous token."""
    conv_kernel_size: int = Field(default=2, gt=0)
    """Taps of the convolution over slots (dflash2)."""
    conv_group_size: int = Field(default=16, gt=0)
    """Channels that share the dynamic part of its kernel (dflash2)."""
    selector_rank: int = Field(default=256, gt=0)
    """Rank of the selector (dflash2)."""
    selector_top_k: int = Field(default=16, gt=1)
    """Most likely tokens of a slot that it chooses among (dflash2)."""
    xpress_rank: int = Field(default=256, gt=0)
    """Rank of the refiner (xpress)."""
    xpress_mlp_ratio: int = Field(default=2, gt=0)
    """How many times wider than its rank its MLP is (xpress)."""
    norms: Literal["eagle3", "eagle3.1"] = "eagle3"
    """Norms beside those of the block: none; or of each captured state, and of what a step hands on (eagle3)."""
    train_embedding: bool = False
    """Whether the token embedding, that of the mask token with it, is trained instead of the target's (peagle)."""
    draft_vocab_size: int | None = Field(default=None, gt=0)
    """Reduced output vocabulary, the most frequent tokens of the answers; None: the target's."""
    window: int | None = Field(default=None, gt=0)
    """Positions that a layer sees, a query's own among them: what lies farther back is not read, however long the
    context; None: all."""
    window_layers: tuple[int, ...] | None = None
    """Which of the draft's layers have that window, from 0 on; None: all of them."""

    @model_validator(mode="after")
    def _layers_of_a_window(self) -> Self:
        if self.window_layers is not None and self.window is None:
            raise ValueError(f"window_layers {list(self.window_layers)} have no size; set window, or leave them out")
        if self.window_layers is not None and not self.window_layers:
            raise ValueError("window_layers is empty: no layer has the window; name some, or leave window out")
        return self


class Objective(Spec):
    """What the draft is trained for. None means: as the algorithm has it (algorithms/__init__.py)."""

    num_anchors: int = Field(default=512, gt=0)
    """Blocks, or chains of mask tokens (peagle), sampled from one sample (all but eagle3 and mtp)."""
    cross_entropy: float | None = Field(default=None, ge=0)
    """Weight of the cross-entropy with the true token (dspark and xpress 0.1, dflash, dflash2 and mtp 1)."""
    total_variation: float | None = Field(default=None, ge=0)
    """Weight of ‖q − p‖₁ against the target's distribution (dspark 0.9, xpress 0.45, the others 0)."""
    soft_cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the target's distribution (eagle3 and peagle: 1 where no term below is
    chosen)."""
    forward_kl: float = Field(default=0.0, ge=0)
    """Weight of KL(p‖q), p the target's distribution: the same gradient, a loss that can become 0."""
    reverse_kl: float = Field(default=0.0, ge=0)
    """Weight of KL(q‖p)."""
    jensen_shannon: float = Field(default=0.0, ge=0)
    """Weight of the Jensen-Shannon divergence of q and p."""
    log_acceptance: float = Field(default=0.0, ge=0)
    """Weight of −log Σ min(p, q), the chance that the target keeps a drafted token."""
    lk_hybrid: float = Field(default=0.0, ge=0)
    """Weight of λ·KL(p‖q) + (1 − λ)·(1 − a), where a = Σ min(p, q) and λ = exp(−η·a)."""
    lk_sharpness: float = Field(default=3.0, ge=0)
    """η of `lk_hybrid`."""
    confidence: float = Field(default=1.0, ge=0)
    """Weight of the confidence head's loss, where there is one."""
    selector: float = Field(default=1.0, ge=0)
    """Weight of the selector's loss, where there is one."""
    consistency: float = Field(default=0.3, ge=0)
    """Weight of the loss of what a refiner makes of its own guesses, a mean over passes (xpress)."""
    consistency_passes: int = Field(default=3, ge=0)
    """Passes of a refiner over its own guesses, the first over the block's likeliest tokens (xpress)."""
    base_anchor: float = Field(default=0.6, ge=0)
    """Weight of the loss of the block's own logits, which a refiner begins with (xpress)."""
    slot_weights: Literal["decay", "dpace"] = "decay"
    """How slots of a block weigh: by their place, or by what the tokens behind them stand to lose (D-PACE)."""
    slot_decay: float = Field(default=4.0, ge=0)
    """γ: slot k weighs exp(−k/γ); 0: all weigh the same (those of blocks)."""
    dpace_alpha: float = Field(default=0.5, gt=0, le=1)
    """α of D-PACE: 1 counts the slots from k on, less heeds how likely the draft finds the tokens before them."""
    ttt_length: int = Field(default=7, gt=0)
    """Test-time training steps (eagle3), steps of the heads (mtp)."""
    step_decay: float = Field(default=0.8, gt=0)
    """Step s weighs step_decay^s (eagle3; mtp: divided by their sum)."""
    depth_ratio: float = Field(default=0.7, gt=0, le=1)
    """r: of the chains of mask tokens, a share of r^d is as long as d (peagle)."""
    depth_ratio_min: float = Field(default=0.2, ge=0, le=1)
    """A share that it never falls below (peagle)."""
    mask_alignment: Literal["predicted", "deepspec"] = "predicted"
    """Which token decides whether an Eagle3 position is supervised, and by what the loss is divided: the token that
    is predicted and the supervised tokens; or, as the public checkpoints, the feature's token and all positions."""
    convention: Literal["deepspec", "speculators"] = "deepspec"
    """What is a label and what a loss is divided by. deepspec: the true token, and the weights of the supervised slots,
    which end at the first unsupervised one. speculators: the target's most likely token, and the number of supervised
    slots, each by itself and across the ends of samples; in the layout shift, and for eagle3 and peagle, by the mask of
    the token before the one that is proposed. mtp: its labels and denominators are the same in both; here a step sees
    nothing of the steps before it, and every step stands at its position's own place."""

    @property
    def looks_behind_the_end(self) -> bool:
        """Return whether a draft may be held against what the target says behind a sample's last token."""
        return self.convention == "speculators" or self.mask_alignment == "deepspec"
