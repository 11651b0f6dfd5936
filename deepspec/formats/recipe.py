"""What a new draft shall look like and what it is trained for; no torch, so that specs can hold it."""

from typing import Literal

from pydantic import Field

from deepspec.artifacts import Spec

AlgorithmName = Literal["dspark", "dflash", "eagle3"]
MarkovHead = Literal["vanilla", "gated", "rnn"]


class DraftRecipe(Spec):
    """The shape of a new draft; everything else follows from its target."""

    algorithm: AlgorithmName = "dspark"
    shape: Literal["qwen3", "target"] = "qwen3"
    """Style of the decoder block: Qwen3's for every target, or the target's own."""
    num_layers: int | None = Field(default=None, gt=0)
    """Decoder blocks; None: 5 for dspark and dflash, 1 for eagle3 (the only choice there)."""
    block_size: int = Field(default=7, gt=0)
    """Tokens that one pass proposes (dspark, dflash)."""
    markov_head: MarkovHead = "vanilla"
    markov_rank: int = Field(default=256, ge=0)
    """Rank of the Markov head; 0: none (dspark)."""
    confidence_head: bool = True
    """Whether a head learns the chance that a slot is accepted (dspark)."""
    confidence_with_markov: bool = True
    """Whether that head also sees the Markov embedding of the previous token."""
    draft_vocab_size: int | None = Field(default=None, gt=0)
    """Reduced output vocabulary, the most frequent tokens of the answers; None: the target's."""


class Objective(Spec):
    """What the draft is trained for. None means: as the algorithm has it (algorithms/__init__.py)."""

    num_anchors: int = Field(default=512, gt=0)
    """Blocks sampled from one sample (dspark, dflash)."""
    cross_entropy: float | None = Field(default=None, ge=0)
    """Weight of the cross-entropy with the true token (dspark 0.1, dflash 1)."""
    total_variation: float | None = Field(default=None, ge=0)
    """Weight of ‖q − p‖₁ against the target's distribution (dspark 0.9, dflash 0)."""
    soft_cross_entropy: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the target's distribution (dspark, dflash; eagle3 knows no other loss)."""
    confidence: float = Field(default=1.0, ge=0)
    """Weight of the confidence head's loss, where there is one."""
    slot_decay: float = Field(default=4.0, ge=0)
    """γ: slot k weighs exp(−k/γ); 0: all weigh the same (dspark, dflash)."""
    ttt_length: int = Field(default=7, gt=0)
    """Test-time training steps (eagle3)."""
    step_decay: float = Field(default=0.8, gt=0)
    """Step s weighs step_decay^s (eagle3)."""
    mask_alignment: Literal["predicted", "deepspec"] = "predicted"
    """Which token decides whether an Eagle3 position is supervised, and by what the loss is divided: the token that
    is predicted and the supervised tokens; or, as the public checkpoints, the feature's token and all positions."""
