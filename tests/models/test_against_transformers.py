"""Our one block against the decoder layers of transformers: same weights, same numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepspec.attention.attention import KeyValue
from deepspec.attention.rope import RotaryEmbedding, inverse_frequencies
from deepspec.families import read
from deepspec.families.rope import rope
from deepspec.families.shape import BlockShape, Rope
from deepspec.models.block import Block

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "layer_types": ["full_attention", "full_attention"],
}
FULL_ROPE = {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
GEMMA4 = {"head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
          "rope_parameters": FULL_ROPE, "final_logit_softcapping": 30.0}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {"model_type": "llama", "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 24, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "gemma4_text": {**GEMMA4, "attention_k_eq_v": True},
    "gemma4_text with values": {**GEMMA4, "model_type": "gemma4_text", "attention_k_eq_v": False},
    "gemma4_unified_text": {**GEMMA4, "attention_k_eq_v": True},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_block_equals_the_layer_of_transformers(name: str) -> None:
    config = {**SIZES, "model_type": name, **CASES[name]}
    shape, model = read(config), _random_model(config)
    layers = [_copied(shape.block, layer, offset=1.0 if shape.family == "gemma3" else 0.0) for layer in _layers(model)]
    ids = torch.randint(0, 96, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids, output_hidden_states=True).hidden_states
        x = model.get_input_embeddings()(ids)
        torch.testing.assert_close(wanted[0], model.get_input_embeddings().weight[ids] * shape.embedding_scale)
        got = _through(layers, shape.block, x)
    torch.testing.assert_close(got[0], wanted[1], atol=1e-4, rtol=1e-4)  # the last one has the final norm on top


def _random_model(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embed" not in name:
                weight.normal_(0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(("layers.0", "layers.1"))]


def _copied(shape: BlockShape, layer: nn.Module, offset: float) -> Block:
    block = Block(shape)
    weights = {name: weight + offset if weight.dim() == 1 and offset else weight
               for name, weight in layer.state_dict().items()}  # fmt: skip
    block.load_state_dict(weights, strict=True)
    return block


def _through(layers: list[Block], shape: BlockShape, x: Tensor) -> list[Tensor]:
    positions = torch.arange(x.shape[1]).expand(x.shape[:2])
    rotation = RotaryEmbedding(shape.rope, shape.head_dim)(positions, x.dtype)
    empty = x.new_zeros(len(x), shape.num_kv_heads, 0, shape.head_dim)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None, None]
    out = []
    for layer in layers:
        x = layer(x, rotation, KeyValue(empty, empty), causal)
        out.append(x)
    return out


ROPES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False, "beta_fast": 20.0},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7,
     "original_max_position_embeddings": 128},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("values", ROPES, ids=lambda values: values["rope_type"])
def test_frequencies_equal_those_of_transformers(values: dict[str, Any]) -> None:
    values = {**values, "rope_theta": 10000.0}
    config = AutoConfig.for_model("llama", head_dim=32, max_position_embeddings=512, rope_parameters=values)
    wanted, factor = ROPE_INIT_FUNCTIONS[values["rope_type"]](config, None)
    ours = rope({"rope_parameters": values, "max_position_embeddings": 512})
    torch.testing.assert_close(inverse_frequencies(ours, 32), wanted)
    assert ours.attention_factor == pytest.approx(factor)


def test_cast_model_keeps_its_angles_in_fp32() -> None:
    rotary = RotaryEmbedding(Rope(theta=10000.0), 16).to(torch.bfloat16)
    cos, _ = rotary(torch.tensor([[4001]]), torch.float32)
    assert cos[0, 0, 0, 0].item() == pytest.approx(torch.tensor(4001.0).cos().item(), abs=1e-6)
