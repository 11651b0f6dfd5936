"""What is said of quantised weights, and of those that cannot be loaded here. Real packages: docs/targets.md."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.errors import TargetError
from deepspec.families import quantized
from deepspec.families.quantized import computes_quantised, quantization_told
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
