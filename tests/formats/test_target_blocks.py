"""A draft that starts from its target's last blocks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from deepspec.attention.attention import KeyValue
from deepspec.models.block import Block
from deepspec.start.blocks import start_from_target
from tests.given.drafts.learning import SIZE, TARGETS, tiny


def _target(folder: Path, family: str = "qwen3") -> Any:
    """Write a tiny target of transformers and return it."""
    torch.manual_seed(0)
    config = {key: value for key, value in TARGETS[family].items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(TARGETS[family]["model_type"], **config)).eval()
    (folder / "config.json").write_text(json.dumps(TARGETS[family]))
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return model


def test_blocks_are_the_targets_last_ones(tmp_path: Path) -> None:
    target, draft = _target(tmp_path), tiny()
    assert start_from_target(draft, tmp_path)
    for ours, theirs in zip(draft.layers, target.model.layers[-2:], strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    x = torch.randn(1, 5, SIZE)
    positions = torch.arange(5)[None]
    empty = KeyValue(torch.zeros(1, 2, 0, 8), torch.zeros(1, 2, 0, 8))
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        ours = draft.layers[0](x, draft.rotary(positions, x.dtype), empty, causal)
        rotation = target.model.rotary_emb(x, positions)
        theirs = target.model.layers[-2](x, position_embeddings=rotation, attention_mask=causal)
    torch.testing.assert_close(ours, theirs if isinstance(theirs, torch.Tensor) else theirs[0], atol=1e-5, rtol=1e-4)


def test_the_context_starts_as_the_deepest_captured_layer(tmp_path: Path) -> None:
    _target(tmp_path)
    draft = tiny()
    before = draft.fc.weight.clone()
    start_from_target(draft, tmp_path)
    torch.testing.assert_close(draft.fc.weight[:, SIZE:], 0.1 * before[:, SIZE:] + torch.eye(SIZE))
    torch.testing.assert_close(draft.fc.weight[:, :SIZE], 0.1 * before[:, :SIZE])


def test_norms_that_the_target_lacks_are_as_large_as_its_weights_make_queries(tmp_path: Path) -> None:
    target, draft = _target(tmp_path, "llama"), tiny(target="llama")
    assert start_from_target(draft, tmp_path)
    attention = target.model.layers[-1].self_attn
    x = torch.nn.functional.rms_norm(torch.randn(4000, SIZE), (SIZE,))
    found = attention.k_proj(x).view(-1, 2, 8).pow(2).mean((0, 1)).sqrt()
    torch.testing.assert_close(draft.blocks()[-1].self_attn.k_norm.weight, found, atol=0.0, rtol=0.1)


def test_eagle_reads_its_state_as_the_target_reads_its_input(tmp_path: Path) -> None:
    target, draft = _target(tmp_path), tiny("eagle3")
    assert start_from_target(draft, tmp_path)
    block, last = draft.layers[0], target.model.layers[-1]
    assert isinstance(block, Block)
    assert torch.equal(block.self_attn.q_proj.weight[:, SIZE:], last.self_attn.q_proj.weight)
    assert torch.equal(block.hidden_norm.weight, last.input_layernorm.weight)
    assert not torch.equal(block.input_layernorm.weight, last.input_layernorm.weight)


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_target_of_another_form_changes_nothing(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TARGETS[family]))
    draft = tiny(target=family)
    before = {name: tensor.clone() for name, tensor in draft.state_dict().items()}
    assert not start_from_target(draft, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in draft.state_dict().items())
