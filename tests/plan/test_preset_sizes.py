"""Sizes of presets are those of the model class that transformers has as the type's default, weight for weight."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from deepspec.families import read
from deepspec.plan import presets

DEFAULTS = {"deepseek-v3": "deepseek_v3", "gpt-oss-120b": "gpt_oss", "mixtral-8x7b": "mixtral"}
"""Preset -> the type whose defaults are this very model."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_preset_has_the_sizes_of_its_type(name):
    config = CONFIG_MAPPING[DEFAULTS[name]]()
    shape = read(config.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert presets.target(name)["target"]["sizes"] == {
        "layers": shape.num_layers,
        "hidden": shape.block.hidden_size,
        "intermediate": shape.block.intermediate_size,
        "heads": shape.block.num_heads,
        "kv_heads": shape.block.num_kv_heads,
        "head_dim": shape.block.head_dim,
        "vocabulary": shape.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
