"""A tiny random target of every decoder-only type of the installed transformers, made from its own config class."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.given.targets.tiny import IM_END, VOCAB

LOCK = (Path(__file__).parents[3] / "requirements.lock").read_text(encoding="utf-8").splitlines()
LAYERS = 4
KINDS = ("full_attention", "sliding_attention")
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dff", "dim_ff", "d_inner", "ffn_hidden_size"), 96),
    **dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp", "decoder_ffn_dim"), 96),
    **dict.fromkeys(
        ("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_channels", "attention_head_size"), 16
    ),
    **dict.fromkeys(("dim_head", "index_head_dim", "linear_head_dim", "swa_head_dim", "global_head_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "rotary_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "num_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_global_key_value_heads", "index_n_heads", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    "mamba_d_ssm": 128,
    "mamba_expand": 2,
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size", "attention_chunk_size"), 16),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    "shared_experts_intermediate_size": 32,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "zero_expert_num": 2,
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), 8),
    "max_position_embeddings": 256,
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "context_length", "seq_length"), 256),
    "initializer_range": 0.15,
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size"), VOCAB),
    "eos_token_id": IM_END,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
"""Name of a config's field -> its value in a tiny model, where the type has the field."""


def config_of(model_type: str) -> Any:
    """Return a small config of a type."""
    kind = CONFIG_MAPPING[model_type]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    sizes = {name: value for name, value in SIZES.items() if name in defaults}
    if defaults.get("num_key_value_heads") in (None, defaults.get("num_attention_heads")):
        sizes.pop("num_key_value_heads", None)
        if defaults.get("num_key_value_heads") is not None:
            sizes["num_key_value_heads"] = 4
    return kind(**{**sizes, **OWN.get(model_type, {})})


_HALF_FULL = ["linear_attention", "full_attention"] * 2
OWN: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "bert": {"is_decoder": False},
    "bloom": {"pad_token_id": 3},
    "cohere_compass_text": {"rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4} for k in KINDS}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16,
        "swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_qk_rope_head_dim": 16, "swa_v_head_dim": 16,
    },
    "falcon_h1": {"embedding_multiplier": 5.5, "lm_head_multiplier": 0.5},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"vocab_size_per_layer_input": VOCAB},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hrm_text": {"num_hidden_layers": 1},
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": _HALF_FULL},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"head_dim": 24, "v_head_dim": 16},
    "minimax": {"layer_types": _HALF_FULL, "sliding_window": None},
    "nemotron_h": {"sliding_window": None},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_moe_text": {"layer_types": _HALF_FULL},
    "qwen3_5_text": {"layer_types": _HALF_FULL},
    "qwen3_next": {"layer_types": _HALF_FULL},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
        "indexer_compress_ratio": 4, "hc_lowrank": 16,
    },
    "xlnet": {"d_head": 16},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
    "zamba2": {
        "num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2},
}  # fmt: skip
"""What a type needs beside: fields that other types have with another meaning."""


_TEXT = "an image, video or sound model: its text part is "
NOT_BUILT: Mapping[str, str] = {
    "blt": "reads bytes in patches; not built small here",
    "dots3_note": f"{_TEXT}`dots3_note_text`",
    "emu3": "an image model around Llama; not built small here",
    "fuyu": "an image model around Persimmon; not built small here",
    "gemma3n": f"{_TEXT}`gemma3n_text`",
    "gemma4": f"{_TEXT}`gemma4_text`",
    "gemma4_assistant": "a draft model of its own, for Gemma 4",
    "gemma4_unified": f"{_TEXT}`gemma4_unified_text`",
    "gemma4_unified_assistant": "a draft model of its own, for Gemma 4",
    "git": "an image captioner; not built small here",
    "got_ocr2": "an image model around Qwen2; not built small here",
    "llama4": f"{_TEXT}`llama4_text`",
    "mllama": "cross-attention to images; not built small here",
    "moss_transcribe_diarize": "a sound model around Qwen3; not built small here",
    "musicgen": "makes sound, not text",
    "musicgen_melody": "makes sound, not text",
    "phi4_multimodal": "an image and sound model around Phi-3; not built small here",
    "qwen3_5": f"{_TEXT}`qwen3_5_text`",
    "qwen3_5_moe": f"{_TEXT}`qwen3_5_moe_text`",
    "qwen4_exp": f"{_TEXT}`qwen4_exp_text`",
    "reformer": "reversible blocks over chunks of fixed length; not built small here",
    "whisper": "the decoder of a speech model",
    "xmod": "an encoder with adapters for languages",
}
"""Types that are not examined, and why."""


def is_encoder_decoder(model_type: str) -> bool:
    """Return whether models of a type have an encoder beside the decoder."""
    return bool(CONFIG_MAPPING[model_type]().is_encoder_decoder)


def build(model_type: str, seed: int = 0) -> Any:
    """Return a random model of a type, in eval mode; a test skips where an older transformers lacks it."""
    if model_type not in CONFIG_MAPPING and f"transformers=={transformers.__version__}" not in LOCK:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(model_type)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.1)  # what is 0 in a fresh model is not in a trained one
        if model_type == "rwkv":
            model.get_input_embeddings().weight.normal_()  # fresh ones, of 1e-4, drown in the norm: tokens look alike
    return model


TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
