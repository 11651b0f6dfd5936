"""Sizes of presets are those of a model that transformers builds, weight for weight."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from deepspec.families import read
from deepspec.families.quantized import counted_weights
from deepspec.families.working import working
from deepspec.formats.tensor_heads import TensorHead
from deepspec.plan import presets
from deepspec.plan.cost.given import Sizes
from deepspec.plan.resolve import sizes_of
from deepspec.target.heads import read_target
from tests.given.targets import zoo
from tests.given.targets.tiny import write_target

DEFAULTS = {
    "deepseek-r1": "deepseek_v3",
    "deepseek-v3": "deepseek_v3",
    "gpt-oss-120b": "gpt_oss",
    "mixtral-8x7b": "mixtral",
    "qwen3-next-80b-a3b": "qwen3_next",
    "smollm3-3b": "smollm3",
}
"""Preset -> the type whose defaults are this very model."""

MORE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen2.5-7b": ("qwen2", {}),
    "qwen2.5-32b": ("qwen2", {}),
    "qwen2.5-72b": ("qwen2", {}),
    "qwen3-32b": ("qwen3", {}),
    "qwen3-30b-a3b": ("qwen3_moe", {"num_experts": 128, "moe_intermediate_size": 768}),
    "qwen3-235b-a22b": ("qwen3_moe", {"num_experts": 128, "moe_intermediate_size": 1536}),
    "llama3.1-8b": ("llama", {}),
    "llama3.3-70b": ("llama", {}),
    "mistral-7b": ("mistral", {}),
    "mistral-small-24b": ("mistral", {}),
    "gpt-oss-20b": ("gpt_oss", {"num_local_experts": 32}),
    "gemma3-4b": ("gemma3_text", {}),
    "gemma3-12b": ("gemma3_text", {}),
    "gemma3-27b": ("gemma3_text", {}),
    "phi-4": ("phi3", {"pad_token_id": None}),
}
"""Preset -> its type, and what sizes do not tell. The sizes themselves are the published configs'; that they are copied
rightly shows in the weights."""

PUBLISHED = {
    "qwen2.5-7b": 7.62, "qwen2.5-32b": 32.8, "qwen2.5-72b": 72.7, "qwen3-32b": 32.8, "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235, "llama3.1-8b": 8.03, "llama3.3-70b": 70.6, "mistral-7b": 7.25, "mistral-small-24b": 23.6,
    "gpt-oss-20b": 20.9, "gemma3-4b": 3.88, "gemma3-12b": 11.8, "gemma3-27b": 27.0, "phi-4": 14.7, "smollm3-3b": 3.08,
    "qwen3-next-80b-a3b": 79.7, "deepseek-v3": 671, "deepseek-r1": 671, "gpt-oss-120b": 117, "mixtral-8x7b": 46.7,
}  # fmt: skip
"""Billions of weights, as model cards tell them; of Gemma 3 those of the text part."""


WORKING = {
    "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22, "gpt-oss-20b": 3.6, "gpt-oss-120b": 5.1, "mixtral-8x7b": 12.9,
    "deepseek-v3": 37, "deepseek-r1": 37, "qwen3-next-80b-a3b": 3,
}  # fmt: skip
"""Billions of weights that work on one token, as model cards tell them, which count embeddings or not."""


EXPERTS = (".experts.", "block_sparse_moe.input_linear", "block_sparse_moe.output_linear")
"""In the names of what one expert has, or all laid upon each other."""


def weights(config: Any) -> dict[str, int]:
    """Return all weights, and those that work on one token where experts are chosen."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    every = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(count for name, count in every.items() if any(sign in name for sign in EXPERTS))
    found = {"parameters": sum(every.values())}
    if not experts:
        return found
    chosen = {getattr(config, name, None) for name in ("num_local_experts", "n_routed_experts", "num_experts")} - {None}
    (count,) = chosen
    return {**found, "working": found["parameters"] - experts * (count - config.num_experts_per_tok) // count}


def told(config: Any) -> dict[str, int]:
    shape = read(config.to_dict())
    again = {"reads_again": True} if shape.reads_again else {}
    return {
        **again,
        "layers": shape.num_layers,
        "hidden": shape.block.hidden_size,
        "intermediate": shape.block.intermediate_size,
        "heads": shape.block.num_heads,
        "kv_heads": shape.block.num_kv_heads,
        "head_dim": shape.block.head_dim,
        "vocabulary": shape.vocab_size,
        **weights(config),
    }


def plain(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes without what is said of their quantisation, which defaults of a type have not."""
    return {name: value for name, value in sizes.items() if name != "bits"}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_preset_has_the_sizes_of_its_type(name: str) -> None:
    assert plain(presets.target(name)["target"]["sizes"]) == told(CONFIG_MAPPING[DEFAULTS[name]]())


@pytest.mark.parametrize("name", MORE)
def test_a_model_of_a_presets_sizes_has_its_weights(name: str) -> None:
    sizes = presets.target(name)["target"]["sizes"]
    model_type, more = MORE[name]
    config = CONFIG_MAPPING[model_type](
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        vocab_size=sizes["vocabulary"],
        **more,
    )
    assert plain(sizes) == told(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_weights_as_its_card_says(name: str) -> None:
    billions = presets.target(name)["target"]["sizes"]["parameters"] / 1e9
    assert float(f"{billions:.3g}") == PUBLISHED[name]


def test_a_preset_of_experts_has_the_weights_that_work_on_a_token() -> None:
    found = {name: presets.target(name)["target"]["sizes"] for name in presets.names("targets")}
    billions = {name: sizes["working"] / 1e9 for name, sizes in found.items() if "working" in sizes}
    assert billions == {name: pytest.approx(told, rel=0.3) for name, told in WORKING.items()}


@pytest.mark.parametrize(("name", "layers", "experts"), [("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128)])
def test_experts_of_gpt_oss_take_four_bits_and_a_scale_of_eight_for_32_of_them(
    name: str, layers: int, experts: int
) -> None:
    """All else is in bf16. Two matrices of 2880 × 2880 up and one down: 13.76 GB and 65.2 GB, as their files have."""
    sizes = Sizes.model_validate(presets.target(name)["target"]["sizes"])
    quantised = layers * experts * 3 * 2880 * 2880
    bits = (quantised * (4 + 8 / 32) + (sizes.parameters - quantised) * 16) / sizes.parameters
    assert sizes.bits == round(bits, 2)
    assert sizes.weights_bytes / 1e9 == pytest.approx({"gpt-oss-20b": 13.76, "gpt-oss-120b": 65.2}[name], rel=0.002)


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-r1"])
def test_of_deepseek_all_but_embedding_and_head_takes_eight_bits(name: str) -> None:
    sizes = Sizes.model_validate(presets.target(name)["target"]["sizes"])
    ends = 2 * 129_280 * 7168
    assert sizes.bits == round((8 * (sizes.parameters - ends) + 16 * ends) / sizes.parameters, 2)


def test_of_packed_weights_each_is_counted(tmp_path: Path) -> None:
    """Of 4 bits eight lie in an int32: 16 numbers are 128 weights. An embedding of 10 × 8 and 16 scales are plain:
    64 + 160 + 32 bytes together."""
    heads = {
        "model.embed_tokens.weight": TensorHead(dtype="BF16", shape=(10, 8)),
        "model.layers.0.mlp.up_proj.qweight": TensorHead(dtype="I32", shape=(1, 16)),
        "model.layers.0.mlp.up_proj.scales": TensorHead(dtype="F16", shape=(1, 16)),
    }
    plain = read_target(write_target(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq", "bits": 4}}))
    packed = replace(plain, heads=heads)
    assert packed.parameters == 80 + 128 + 16
    assert packed.bits == pytest.approx(8 * 256 / 224)
    sizes = sizes_of(packed)
    assert sizes.parameters == 224
    assert sizes.weights_bytes == pytest.approx(256)


def test_of_experts_that_are_packed_as_many_work(tmp_path: Path) -> None:
    """One of two experts, of 128 weights each, and 80 of the embedding."""
    heads = {f"model.layers.0.mlp.experts.{n}.up_proj.qweight": TensorHead(dtype="I32", shape=(1, 16)) for n in (0, 1)}
    heads["model.embed_tokens.weight"] = TensorHead(dtype="BF16", shape=(10, 8))
    weights = counted_weights(heads, {"quant_method": "gptq", "bits": 4})
    config = {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1}
    assert (sum(weights.values()), working(config, heads, weights)) == (336, 208)


def test_every_preset_is_a_name_that_a_folder_can_have() -> None:
    for name in presets.names("targets"):
        assert presets.target(name)["target"]["name"] == name
        assert name == name.lower()
        assert "/" not in name


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "granitemoe"])
def test_of_a_mixture_on_disk_as_many_weights_work_as_of_a_preset(model_type: str, tmp_path: Path) -> None:
    """Experts lie in the files one by one, or all laid upon each other, under names with and without the word."""
    model = zoo.build(model_type)
    model.save_pretrained(tmp_path)
    sizes, wanted = sizes_of(read_target(tmp_path)), weights(model.config)
    assert sizes.working is not None
    assert sizes.parameters - sizes.working == wanted["parameters"] - wanted["working"] > 0


def test_of_a_mixture_whose_config_nests_its_experts_the_chosen_ones_work(tmp_path: Path) -> None:
    """DBRX: 2 of 4 experts of 3 matrices of 96 × 64 in each of 4 layers."""
    zoo.build("dbrx").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["ffn_config"]["moe_num_experts"], config["ffn_config"]["moe_top_k"]) == (4, 2)
    sizes = sizes_of(read_target(tmp_path))
    assert sizes.working == sizes.parameters - 4 * 2 * 3 * 96 * 64


def test_all_weights_of_a_dense_target_work(tmp_path: Path) -> None:
    assert sizes_of(read_target(write_target(tmp_path))).working is None
