"""A tiny target of Qwen3.5's kind as one GGUF file, beside its weights: what llama.cpp's architecture `qwen35` reads.

Norms hold 1 + weight there, decays −exp(A), and convolutions two axes.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.given.targets import tiny

ARCH, FILE = "qwen35", "target.gguf"
NORMAL, CONTROL = 1, 3
"""Types of tokens."""
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm", "linear_attn.out_proj": "ssm_out",
}  # fmt: skip
_BARE = {"linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.A_log": "ssm_a"}


def write_gguf(
    target: Path,
    *,
    arch: str = ARCH,
    quantized: Collection[str] = (),
    own_heads: bool = False,
    listed: bool = False,
    pieces: int = 1,
    without: Collection[str] = (),
) -> Path:
    """Write a target's folder as a GGUF file into it, without its heads, and return the file.

    Args:
        target: the folder.
        arch: what the file calls itself.
        quantized: tensors to be held in 8 bits.
        own_heads: whether it says that it has heads.
        listed: whether it tells the key-value heads of each layer.
        pieces: of how many it says to be one.
        without: tensors that it lacks.
    """
    config = json.loads((target / "config.json").read_text())
    writer = gguf.GGUFWriter(target / FILE, arch=arch)
    _write_shape(writer, config, own_heads)
    heads, layers = config["num_key_value_heads"], config["num_hidden_layers"]
    writer.add_head_count_kv([heads] * layers if listed else heads)
    if pieces > 1:
        writer.add_uint16("split.count", pieces)
    _write_tokenizer(writer)
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in _tensors(target):
        if name in without:
            continue
        data = tensor.float().numpy()
        if name in quantized:
            writer.add_tensor(name, gguf.quantize(data, eight), raw_dtype=eight)
        else:
            writer.add_tensor(name, data)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return target / FILE


def _write_shape(writer: Any, config: dict[str, Any], own_heads: bool) -> None:
    rope, types = config["rope_parameters"], config["layer_types"]
    rotated = int(config["head_dim"] * rope["partial_rotary_factor"])
    full = [number for number, each in enumerate(types, 1) if each == "full_attention"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"] + own_heads)
    if own_heads:
        writer.add_uint32(f"{ARCH}.nextn_predict_layers", 1)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(rotated)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_array(f"{ARCH}.rope.dimension_sections", [rotated // 2 - 2, 1, 1, 0])
    writer.add_uint32(f"{ARCH}.full_attention_interval", full[0])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_num_value_heads"] * config["linear_value_head_dim"])


def _write_tokenizer(writer: Any) -> None:
    own = tiny.tokenizer()
    tokens = [own.convert_ids_to_tokens(token) or f"<unused {token}>" for token in range(tiny.VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL if token < tiny.IM_START else CONTROL for token in range(tiny.VOCAB)])
    writer.add_token_merges(["þ ÿ"])  # one at least is wanted, of bytes that no text has
    writer.add_eos_token_id(tiny.IM_END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny.CHATML)


def _tensors(target: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(target.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if not name.startswith("mtp."):
                yield _named(name), _as_read(name, tensor)


def _named(name: str) -> str:
    whole = name.removesuffix(".weight")
    if whole in _ENDS:
        return f"{_ENDS[whole]}.weight"
    _, _, layer, rest = whole.split(".", 3)
    return f"blk.{layer}.{_BARE[rest]}" if rest in _BARE else f"blk.{layer}.{_LAYER[rest]}.weight"


def _as_read(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("A_log"):
        return -torch.exp(tensor.float())
    if name.endswith("conv1d.weight"):
        return tensor.squeeze(1)
    return tensor + 1 if name.endswith("norm.weight") and "linear_attn" not in name else tensor
