"""Llama and its kin: SmolLM2, Llama 3; also the plain part of every other family's block."""

from dataclasses import replace
from typing import Any

from deepspec.errors import TargetError
from deepspec.families.rope import Config, rope
from deepspec.families.shape import BlockShape

DEFAULTS: Config = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}


def block(config: Config) -> BlockShape:
    """Return the decoder block that a Llama config describes."""
    heads = int(need(config, "num_attention_heads"))
    size = int(need(config, "hidden_size"))
    head_dim = int(config.get("head_dim") or size // heads)
    return BlockShape(
        hidden_size=size,
        intermediate_size=int(need(config, "intermediate_size")),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        norm_eps=float(need(config, "rms_norm_eps")),
        rope=rope(config),
        attention_scale=head_dim**-0.5,
    )


def with_qk_norm(config: Config) -> BlockShape:
    """Return the decoder block that a Qwen3 config describes."""
    return replace(block(config), qk_norm=True)


def need(config: Config, key: str) -> Any:
    """Return a value that a config must have.

    Raises:
        TargetError: it is missing.
    """
    if config.get(key) is None:
        raise TargetError(f"config.json of model_type {config.get('model_type')!r} has no {key!r}; is it complete?")
    return config[key]
