"""Tiny drafts of every kind, and a tiny target with a GGUF file that holds only a tokenizer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import torch

from deepspec.checkpoint.draft import choose_vocabulary, save_draft
from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.formats.recipe import TRAITS, DraftRecipe, Objective
from deepspec.models.draft import build_draft
from tests.given.drafts.recipes import sized

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

LLAMA = {**SIZES, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
GEMMA = {
    **SIZES, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 8,
    "hidden_activation": "gelu_pytorch_tanh", "rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "layer_types": ["full_attention"] * 8,
}  # fmt: skip

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "attention_factor": 1.5,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 20000.0, "factor": 4.0}


def turned(rope: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a target with a rope."""
    return {**LLAMA, "rope_parameters": rope}


EAGLE3 = {"algorithm": "eagle3", "shape": "target"}
KINDS: dict[str, dict[str, Any]] = {
    "dspark": {"recipe": {}},
    "dspark_embedded": {"recipe": {}, "layers": (-1, 1, 3, 5)},
    "dspark_gated": {"recipe": {"markov_head": "gated"}},
    "dspark_rnn": {"recipe": {"markov_head": "rnn"}},
    "dspark_blind": {"recipe": {"confidence_with_markov": False}},
    "dspark_llama": {"recipe": {"shape": "target"}},
    "dspark_gemma": {"recipe": {}, "target": GEMMA},
    "dspark_reduced": {"recipe": {"draft_vocab_size": 20}},
    "dflash": {"recipe": {"algorithm": "dflash"}},
    "dflash_reduced": {"recipe": {"algorithm": "dflash", "draft_vocab_size": 20}},
    "dflash_filled": {"recipe": {"algorithm": "dflash", "layout": "fill_in"}},
    "dspark_filled": {"recipe": {"layout": "fill_in"}},
    "dflash2": {"recipe": {"algorithm": "dflash2", "selector_rank": 6, "selector_top_k": 4}},
    "dflash2_wide": {"recipe": {"algorithm": "dflash2", "selector_rank": 6, "selector_top_k": 6}},
    "dflash2_shift": {"recipe": {"algorithm": "dflash2", "layout": "shift", "selector_rank": 6, "selector_top_k": 4}},
    "dflash2_gemma": {"recipe": {"algorithm": "dflash2", "selector_rank": 6, "selector_top_k": 4}, "target": GEMMA},
    "xpress": {"recipe": {"algorithm": "xpress", "xpress_rank": 6, "xpress_mlp_ratio": 3}},
    "xpress_shift": {"recipe": {"algorithm": "xpress", "layout": "shift", "xpress_rank": 6}},
    "xpress_reduced": {"recipe": {"algorithm": "xpress", "xpress_rank": 6, "draft_vocab_size": 20, "window": 64}},
    "eagle3": {"recipe": {"algorithm": "eagle3"}},
    "eagle31": {"recipe": {"algorithm": "eagle3", "norms": "eagle3.1"}},
    "eagle31_llama": {
        "recipe": {"algorithm": "eagle3", "shape": "target", "norms": "eagle3.1"}, "layers": (1, 3, 5),
    },
    "eagle3_four": {"recipe": EAGLE3, "layers": (-1, 1, 3, 5)},
    "eagle3_llama": {"recipe": {"algorithm": "eagle3", "shape": "target"}, "layers": (1, 3, 5)},
    "dspark_near": {"recipe": {"window": 64, "num_layers": 2, "window_layers": (1,)}},
    "dflash2_near": {"recipe": {"algorithm": "dflash2", "window": 64, "selector_rank": 6, "selector_top_k": 4}},
    "eagle3_near": {"recipe": {"algorithm": "eagle3", "window": 64}},
    "eagle3_llama_near": {
        "recipe": {"algorithm": "eagle3", "shape": "target", "window": 64}, "layers": (1, 3, 5),
    },
    "dspark_linear": {"recipe": {}, "target": turned(LINEAR)},
    "dspark_yarn": {"recipe": {}, "target": turned(YARN)},
    "dspark_llama3": {"recipe": {}, "target": turned(LLAMA3)},
    "dflash2_dynamic": {
        "recipe": {"algorithm": "dflash2", "selector_rank": 6, "selector_top_k": 4}, "target": turned(DYNAMIC),
    },
    "eagle3_yarn": {"recipe": EAGLE3, "target": turned(YARN), "layers": (1, 3, 5)},
    "eagle3_dynamic": {"recipe": EAGLE3, "target": turned(DYNAMIC), "layers": (1, 3, 5)},
    "peagle": {"recipe": {"algorithm": "peagle", "num_layers": 2, "train_embedding": True}},
    "peagle_llama": {
        "recipe": {"algorithm": "peagle", "shape": "target", "draft_vocab_size": 20}, "layers": (1, 3, 5),
    },
    "dspark_biased": {"recipe": {}, "head_bias": True},
    "dflash2_biased": {"recipe": {"algorithm": "dflash2", "selector_rank": 6, "selector_top_k": 4}, "head_bias": True},
    "eagle3_biased": {"recipe": EAGLE3, "layers": (1, 3, 5), "head_bias": True},
    "eagle3_reduced": {
        "recipe": {"algorithm": "eagle3", "shape": "target", "draft_vocab_size": 20}, "layers": (1, 3, 5),
    },
}  # fmt: skip


def write_draft(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random draft and return its folder."""
    told = KINDS[kind]
    recipe = DraftRecipe(
        **sized(told["recipe"].get("algorithm", "dspark"), num_layers=1, markov_rank=4) | told["recipe"]
    )
    mask = 47 if TRAITS[recipe.algorithm].masked else None
    layers = told.get("layers", (0 if TRAITS[recipe.algorithm].blocks else -1, 1, 3, 5))
    shape = replace(read(told.get("target", LLAMA)), head_bias=told.get("head_bias", False))
    config = new_draft_config(shape, recipe, layers, mask, Objective())
    torch.manual_seed(3)
    model = build_draft(config)
    for name, parameter in model.named_parameters():
        deep = name.startswith("refiner_head")  # five products in a row: their logits would be large, and so rounding
        torch.nn.init.normal_(parameter, std=0.2 if deep else 0.5)
    if config.reduced_vocabulary:
        choose_vocabulary(model, torch.rand(48))
    save_draft(model.to(dtype), folder)
    return folder


def write_target(folder: Path) -> Path:
    """Write config.json and a GGUF file with a tokenizer of 48 tokens, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    writer = gguf.GGUFWriter(folder / "target.gguf", arch="llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number} é" for number in range(48)])
    writer.add_token_types([1] * 48)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder
