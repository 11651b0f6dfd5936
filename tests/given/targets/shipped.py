"""Tiny targets that ship MTP heads, as Qwen3.5 and Qwen3 have them: two shards, the heads in the second with others."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM

from tests.given.targets import tiny

SIZES = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15,
    "eos_token_id": tiny.IM_END, "tie_word_embeddings": False,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
OF_QWEN3_5 = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 0]}, "mtp_num_hidden_layers": 1, **LINEAR}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def heads(
    kind: str, dtype: torch.dtype = torch.float32, sizes: Mapping[str, Any] = SIZES, std: float = 0.1
) -> dict[str, Tensor]:
    """Return random heads under a target's names."""
    gated = kind == "qwen3_5"
    wide, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    asks, keys = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    shapes = {
        "fc.weight": (wide, 2 * wide), "norm.weight": (wide,), "pre_fc_norm_hidden.weight": (wide,),
        "pre_fc_norm_embedding.weight": (wide,), "layers.0.input_layernorm.weight": (wide,),
        "layers.0.post_attention_layernorm.weight": (wide,), "layers.0.self_attn.q_norm.weight": (head,),
        "layers.0.self_attn.k_norm.weight": (head,),
        "layers.0.self_attn.q_proj.weight": (2 * asks if gated else asks, wide),
        "layers.0.self_attn.k_proj.weight": (keys, wide), "layers.0.self_attn.v_proj.weight": (keys, wide),
        "layers.0.self_attn.o_proj.weight": (wide, asks), "layers.0.mlp.gate_proj.weight": (inner, wide),
        "layers.0.mlp.up_proj.weight": (inner, wide), "layers.0.mlp.down_proj.weight": (wide, inner),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    found = {f"mtp.{name}": std * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ones = {name for name in found if len(found[name].shape) == 1 and not gated}
    return {name: (value + (name in ones)).to(dtype) for name, value in found.items()}


def write_target(folder: Path, kind: str = "qwen3_5", dtype: torch.dtype = torch.float32) -> Path:
    """Write a random target of a kind with its heads, and return its folder."""
    torch.manual_seed(0)
    if kind == "qwen3_5":
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**SIZES, **OF_QWEN3_5))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    return _write(folder, model.to(dtype), heads(kind, dtype))


def write_taught(folder: Path, teach: Callable[[Any], None], sizes: Mapping[str, Any]) -> Path:
    """Write a target of Qwen3.5's kind that was taught something, with random heads, and return its folder.

    Args:
        folder: for it.
        teach: changes the weights of a random model.
        sizes: of its config, beside those that it has anyway.
    """
    torch.manual_seed(0)
    told = {**SIZES, **OF_QWEN3_5, **sizes}
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**told))
    teach(model)
    return _write(folder, model, heads("qwen3_5", sizes=told, std=0.05))


def _write(folder: Path, model: Any, own: dict[str, Tensor]) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tiny.IM_END, tiny.END_OF_TEXT]}))
    (folder / "model.safetensors").unlink()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    last = {name: value for name, value in state.items() if "layers.3." in name or name == "model.norm.weight"}
    shards = {FIRST: {name: state[name] for name in state.keys() - last.keys()}, SECOND: {**last, **own}}
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    placed = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder
