"""What a Hugging Face config says about a model, as plain data. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "proportional"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary position embedding."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    rotary_share: float = 1.0
    """Share of the head that is rotated."""
    original_positions: int | None = None
    """Length of the pre-training context (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Factor on cos and sin (yarn)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockShape:
    """One decoder block: sizes, rope, and the traits in which families differ."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    activation: Literal["silu", "gelu_tanh"] = "silu"
    attention_scale: float
    """Factor on query·key."""
    qk_norm: bool = False
    """RMS norm on each query and key head."""
    v_norm: bool = False
    """RMS norm without a weight on each value head."""
    tied_kv: bool = False
    """Values are the keys before norm and rope: no v_proj."""
    sandwich_norms: bool = False
    """Norms also after attention and MLP, before the residual is added."""
    layer_scalar: bool = False
    """A stored factor on the block's output."""
    offset_norms: bool = False
    """Norms multiply by 1 + their weight (but for those that have none)."""
    gated_attention: bool = False
    """Each head's query comes with a gate as wide: what is read is multiplied by its sigmoid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetShape:
    """What a draft must know about its target."""

    family: str
    model_type: str
    """`model_type` of the (text) config."""
    num_layers: int
    vocab_size: int
    max_positions: int
    embedding_scale: float
    """Factor on the token embedding."""
    logit_softcap: float | None
    """c: logits are c·tanh(logits / c)."""
    head_bias: bool = False
    """Whether the head has a bias that is not 0: its files say so, its config does not."""
    block: BlockShape
    """The target's own (full-attention) block; for mixtures of experts with a dense MLP."""
    text_config: Mapping[str, Any]
    """The text config as read: a draft's config.json is a copy of it with the draft's keys."""
    top_model_type: str
    """`model_type` at the top of the config: differs from `model_type` where the text config is nested."""
    general: bool = False
    """Whether it was read by the general rule (families/general.py): `block` then has the sizes for a draft, and does
    not say how the target's own blocks compute."""
    rope_inherited: bool = True
    """Whether the block's rope is the target's."""
    told: tuple[str, ...] = ()
    """What a draft does not inherit from this target, and what it gets instead."""
    reads_again: tuple[str, ...] = ()
    """Fields of its config that tell of a memory from which setting a length takes no tokens back: state space, linear
    attention, attention over chunks. Accepted tokens are read again then, in a second pass of each round."""
