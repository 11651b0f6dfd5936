"""Configs as the hub has them, read into shapes."""

import math
from typing import Any

import pytest

from deepspec.errors import TargetError, UnknownNameError
from deepspec.families import qwen3_block, read
from deepspec.families.rope import rope, rope_parameters

LLAMA = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
}


def test_llama_head_size_follows_from_hidden_size() -> None:
    shape = read(LLAMA)
    assert (shape.block.head_dim, shape.block.num_kv_heads, shape.num_layers) == (64, 3, 30)
    assert shape.block.attention_scale == 0.125
    assert shape.block.rope.theta == 100000
    assert not shape.block.qk_norm


def test_qwen3_has_qk_norm_and_keeps_its_head_size() -> None:
    shape = read({**LLAMA, "model_type": "qwen3", "head_dim": 128})
    assert shape.block.qk_norm
    assert shape.block.head_dim == 128


def test_mixture_is_read_as_its_dense_width() -> None:
    shape = read({**LLAMA, "model_type": "qwen3_moe", "head_dim": 128, "moe_intermediate_size": 96})
    assert shape.general
    assert shape.block.intermediate_size == 1536


def test_gpt_oss_reads_yarn() -> None:
    scaling = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
    shape = read({**LLAMA, "model_type": "gpt_oss", "head_dim": 64, "rope_scaling": scaling})
    assert shape.block.rope.kind == "yarn"
    assert shape.block.rope.attention_factor == pytest.approx(0.1 * math.log(32) + 1)
    assert not shape.block.rope.truncate


def test_gemma3_nests_its_text_config_and_leaves_out_defaults() -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    shape = read({"model_type": "gemma3", "text_config": text})
    assert shape.embedding_scale == pytest.approx(math.sqrt(2560))
    assert (shape.block.rope.kind, shape.block.rope.factor, shape.block.rope.theta) == ("linear", 8.0, 1e6)
    assert (shape.block.num_heads, shape.block.head_dim, shape.vocab_size) == (8, 256, 262208)
    assert shape.block.sandwich_norms
    assert (shape.model_type, shape.top_model_type) == ("gemma3_text", "gemma3")


GEMMA4 = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 272,
    "final_logit_softcapping": 30.0,
}


@pytest.mark.parametrize("top", ["gemma4", "gemma4_unified"])
def test_gemma4_reads_the_heads_of_full_attention_layers(top: str) -> None:
    text = {**GEMMA4, "attention_k_eq_v": True, "global_head_dim": 32, "num_global_key_value_heads": 1}
    shape = read({"model_type": top, "text_config": text})
    assert (shape.block.head_dim, shape.block.num_kv_heads, shape.block.tied_kv) == (32, 1, True)
    assert (shape.block.rope.kind, shape.block.rope.rotary_share) == ("proportional", 0.25)
    assert shape.block.attention_scale == 1.0
    assert shape.logit_softcap == 30.0


def test_gemma4_with_values_of_its_own_keeps_the_common_number_of_heads() -> None:
    shape = read({**GEMMA4, "attention_k_eq_v": False, "global_head_dim": 32, "num_global_key_value_heads": 1})
    assert (shape.block.num_kv_heads, shape.block.tied_kv) == (2, False)


def test_gemma4_reads_the_per_layer_form_too() -> None:
    layers = {"1": {"head_dim": 32, "num_key_value_heads": 1}}
    types = ["sliding_attention", "full_attention"]
    shape = read({**GEMMA4, "attention_k_eq_v": True, "per_layer_config": layers, "layer_types": types})
    assert (shape.block.head_dim, shape.block.num_kv_heads) == (32, 1)


def test_qwen3_style_keeps_sizes_and_rope_and_drops_the_familys_traits() -> None:
    gemma = read({**GEMMA4, "attention_k_eq_v": True, "global_head_dim": 32}).block
    block = qwen3_block(gemma)
    assert (block.hidden_size, block.head_dim, block.rope) == (64, 32, gemma.rope)
    assert (block.tied_kv, block.sandwich_norms, block.activation, block.qk_norm) == (False, False, "silu", True)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_type": "default", "rope_theta": 5000.0},
        {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
        {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192, "rope_theta": 5e5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    ],
)  # fmt: skip
def test_rope_written_is_read_again(values: Any) -> None:
    first = rope({"rope_parameters": values, "max_position_embeddings": 131072})
    assert rope({"rope_parameters": rope_parameters(first), "max_position_embeddings": 1}) == first


def test_unknown_names_are_refused_by_name() -> None:
    with pytest.raises(TargetError, match="'mystery' is no causal language model of the installed transformers"):
        read({**LLAMA, "model_type": "mystery"})
    with pytest.raises(UnknownNameError, match="unknown rope type 'longrope'"):
        read({**LLAMA, "rope_scaling": {"type": "longrope"}})


def test_missing_key_is_named() -> None:
    with pytest.raises(TargetError, match="'llama' has no 'hidden_size'"):
        read({key: value for key, value in LLAMA.items() if key != "hidden_size"})
