"""Gemma 3 and Gemma 4: scaled embeddings, sandwich norms, and in Gemma 4 larger heads in the full-attention layers.

The configs on the hub hold only what differs from the family's defaults, so the defaults are here too. Gemma 4's head
sizes are read from the JSON, not from transformers' config classes, which move them elsewhere.
"""

from collections.abc import Mapping
from dataclasses import replace

from deepspec.families.llama import block, need
from deepspec.families.rope import Config
from deepspec.families.shape import BlockShape

_COMMON: Config = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
}
DEFAULTS3: Config = {**_COMMON, "vocab_size": 262208, "query_pre_attn_scalar": 256}
DEFAULTS4: Config = {
    **_COMMON,
    "vocab_size": 262144,
    "global_head_dim": 512,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
    },
}


def block3(config: Config) -> BlockShape:
    """Return Gemma 3's full-attention block. Its norm weights are stored less 1."""
    return replace(
        block(config),
        activation="gelu_tanh",
        attention_scale=float(need(config, "query_pre_attn_scalar")) ** -0.5,
        qk_norm=True,
        sandwich_norms=True,
    )


def block4(config: Config) -> BlockShape:
    """Return Gemma 4's full-attention block."""
    tied = bool(config.get("attention_k_eq_v"))
    full = _full_attention_layer(config)
    kv_heads = config.get("num_global_key_value_heads") if tied else None
    return replace(
        block({**config, **full, "num_key_value_heads": kv_heads or need(config, "num_key_value_heads"), **full}),
        activation="gelu_tanh",
        attention_scale=1.0,
        qk_norm=True,
        v_norm=True,
        tied_kv=tied,
        sandwich_norms=True,
        layer_scalar=True,
    )


def _full_attention_layer(config: Config) -> Config:
    """Return what differs in full-attention layers: `per_layer_config` where there is one, else `global_head_dim`."""
    layers = config.get("per_layer_config")
    types = config.get("layer_types")
    if not isinstance(layers, Mapping) or not types:
        return {"head_dim": need(config, "global_head_dim")}
    first = types.index("full_attention")
    own = layers.get(str(first), layers.get(first)) or {}
    return {key: own[key] for key in ("head_dim", "num_key_value_heads") if key in own}
