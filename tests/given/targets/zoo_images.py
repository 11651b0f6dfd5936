"""A tiny random model of types that read text and images: small text and vision parts from their own config classes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.given.targets import zoo
from tests.given.targets.tiny import IM_END, VOCAB

VISION: Mapping[str, Any] = {
    "depth": 2,
    "num_hidden_layers": 2,
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size"), 32),
    **dict.fromkeys(("num_heads", "num_attention_heads"), 2),
    "out_hidden_size": 64,
    "patch_size": 4,
    "image_size": 8,
    "window_size": 8,
    "head_dim": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
TOKENS: Mapping[str, int] = {
    **dict.fromkeys(("image_token_id", "image_token_index"), VOCAB - 2),
    **dict.fromkeys(("video_token_id", "boi_token_index"), VOCAB - 3),
    **dict.fromkeys(("vision_start_token_id", "eoi_token_index"), VOCAB - 4),
    "vision_end_token_id": VOCAB - 5,
    "eos_token_id": IM_END,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
ROPES: Mapping[str, Mapping[str, Any]] = {
    "glm4v": _MROPE,
    "qwen2_vl": _MROPE,
    "qwen2_5_vl": _MROPE,
    "qwen3_vl": {**_MROPE, "mrope_interleaved": True},
    "qwen3_vl_moe": {**_MROPE, "mrope_interleaved": True},
}
"""Types whose positions have three parts, which are one and the same number in text."""

TYPES = (
    "aya_vision",
    "gemma3",
    "glm4v",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llava",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
)


def config_of(model_type: str) -> Any:
    """Return a small config of a type."""
    kind = CONFIG_MAPPING[model_type]
    usual, known = kind(), {field.name for field in dataclasses.fields(kind)}
    parts: dict[str, Any] = {}
    for name in kind.sub_configs:
        part = getattr(usual, name)
        if name == "text_config":
            more = {"rope_parameters": ROPES[model_type]} if model_type in ROPES else {}
            parts[name] = {**zoo.config_of(part.model_type).to_dict(), **more}
        else:
            names = {field.name for field in dataclasses.fields(type(part))}
            parts[name] = type(part)(**{key: value for key, value in VISION.items() if key in names}).to_dict()
    return kind(**parts, **{key: value for key, value in TOKENS.items() if key in known})


def build(model_type: str, seed: int = 0) -> Any:
    """Return a random model of a type, in eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config_of(model_type)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.1)
    return model
