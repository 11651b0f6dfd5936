"""What is said of quantised weights, and of those that cannot be loaded here. Real packages: docs/targets.md."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.errors import TargetError
from deepspec.families import quantized
from deepspec.families.quantized import computes_quantised, counted_weights, packed_bits, quantization_told
from deepspec.formats.tensor_heads import TensorHead
from deepspec.target.load import load_target
from deepspec.target.proof import allowed
from tests.given.targets.tiny import write_target

WORDS = {
    "gptq (4 bits, groups of 128) by gptqmodel 1.2": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "bitsandbytes (4 bits, nf4) by bitsandbytes 1.2": {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    },
    "bitsandbytes (8 bits) by bitsandbytes 1.2": {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "bnb_4bit_quant_type": "fp4",
    },
    "torchao (Int8WeightOnlyConfig) by torchao 1.2": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {"granularity": {"_type": "PerRow"}}}},
    },
    "compressed-tensors (4 bits, pack-quantized, groups of 32) by compressed-tensors 1.2": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}, "input_activations": None}},
    },
    "fp8 (blocks of 128 × 128, dynamic activations)": {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}


@pytest.mark.parametrize("words", WORDS)
def test_kind_bits_groups_and_package_are_said(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "version", lambda _: "1.2")
    assert quantization_told(WORDS[words], None) == words


BITS: Mapping[int | None, Sequence[dict[str, Any]]] = {
    4: [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}}},
        {"quant_method": "mxfp4"},
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        {"quant_method": "quanto", "weights": "int4"},
        {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    ],
    8: [
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    ],
    None: [{"quant_method": "new"}, {}, {"quant_method": "gptq", "bits": "many"}],
}


@pytest.mark.parametrize(("bits", "stored"), [(bits, stored) for bits, told in BITS.items() for stored in told])
def test_bits_are_those_that_a_config_says(bits: int | None, stored: dict[str, Any]) -> None:
    assert packed_bits(stored) == bits


def test_of_weights_that_are_packed_each_is_counted_and_nothing_else() -> None:
    """Two of 4 bits lie in a byte of MXFP4, eight in an int32; zero points and scales are not packed weights."""
    shapes = {
        "mlp.experts.up_proj_blocks": ("U8", 2), "mlp.experts.up_proj_scales": ("U8", 1),
        "up.qweight": ("I32", 8), "up.qzeros": ("I32", 1), "up.weight_shape": ("I64", 1), "norm.weight": ("BF16", 1),
    }  # fmt: skip
    heads = {name: TensorHead(dtype=dtype, shape=(10,)) for name, (dtype, _) in shapes.items()}
    assert counted_weights(heads, {"bits": 4}) == {name: 10 * times for name, (_, times) in shapes.items()}
    assert set(counted_weights(heads, None).values()) == {10}
    assert set(counted_weights(heads, {"quant_method": "new"}).values()) == {10}


def test_plain_weights_are_not_quantised() -> None:
    assert quantization_told(None, None) is None


def test_what_is_loaded_as_plain_weights_is_dequantised() -> None:
    assert quantization_told(None, {"quant_method": "mxfp4"}) == "mxfp4 dequantised"


def test_a_target_says_how_its_checkpoint_is_quantised(tmp_path: Path) -> None:
    target = load_target(write_target(tmp_path))
    assert target.quantization is None
    target.model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    assert target.quantization == "fp8 (blocks of 32 × 32)"
    assert computes_quantised(target.model.config)


@pytest.mark.parametrize(("kind", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("torchao", "torchao")])
def test_a_missing_package_is_named_before_anything_is_loaded(
    kind: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    folder = write_target(tmp_path)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": kind, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantized, "version", missing)
    with pytest.raises(TargetError, match=rf"quantised as {kind} \(4 bits, groups of 128\) by {package}, which is not"):
        load_target(folder)


def test_kernels_of_quantised_weights_may_round_as_bf16_does() -> None:
    assert allowed(torch.float32, quantised=True) == allowed(torch.bfloat16) < 0.1
    assert allowed(torch.float32) < allowed(torch.bfloat16)
