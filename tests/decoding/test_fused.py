"""Fewer kernels for the same numbers, and only while they are asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from deepspec.attention.attention import attend_grouped
from deepspec.kv.fused import GROUPED, Fused
from deepspec.kv.joined import joined
from tests.given.drafts.pairs import TARGETS

NORMS = {"llama": 2 * 3 + 1, "qwen3": 4 * 3 + 1, "gemma3": 6 * 3 + 1}
"""Two, four and six of each of three layers, and the last one."""
PROJECTIONS = 5 * 3
"""Query, key, value, gate and up."""


@pytest.mark.parametrize("family", TARGETS)
@torch.inference_mode()
def test_a_targets_states_are_its_own_and_nothing_stays_changed(family: str) -> None:
    decoder: Any = TARGETS[family]().decoder
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            weight.uniform_(-0.5, 0.5)
    fused, ids = Fused(decoder), torch.randint(2, 48, (2, 9))
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 9, 9)
    masks = {kind: mask for kind in set(decoder.config.layer_types)} if family == "gemma3" else mask
    own = decoder(input_ids=ids, attention_mask=masks, use_cache=False)[0]
    with fused():
        assert sum("forward" in vars(module) for module in decoder.modules()) == NORMS[family] + PROJECTIONS
        assert decoder.config._attn_implementation == GROUPED
        assert [type(module.apply_rotary_pos_emb).__name__ for module in fused._turns] == ["_Rotation"]
        found = decoder(input_ids=ids, attention_mask=masks, use_cache=False)[0]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    assert not [module for module in decoder.modules() if "forward" in vars(module)]
    assert decoder.config._attn_implementation == "sdpa"
    assert [type(module.apply_rotary_pos_emb).__name__ for module in fused._turns] == ["function"]


@pytest.mark.parametrize("bias", [False, True])
def test_projections_are_joined_without_a_second_copy(bias: bool) -> None:
    block = nn.ModuleDict(
        {"q_proj": nn.Linear(8, 12, bias), "k_proj": nn.Linear(8, 4, bias), "v_proj": nn.Linear(8, 4, bias)}
    )
    layers = [layer for layer in block.values() if isinstance(layer, nn.Linear)]
    x, other = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    wanted, apart = [layer(x) for layer in layers], layers[1](other)
    (made,) = joined(block)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    (_, first), (_, second), (_, third) = made.forwards()
    for found, own in zip([first(x), second(x), third(x)], wanted, strict=True):
        torch.testing.assert_close(found, own)
    torch.testing.assert_close(second(other), apart)  # another input: computed by itself
    torch.testing.assert_close([layer(x) for layer in layers], wanted)


@torch.inference_mode()
def test_a_second_decoder_of_a_target_holds_no_second_copy_of_its_weights() -> None:
    decoder: Any = TARGETS["llama"]().decoder
    for weight in decoder.parameters():
        weight.uniform_(-0.5, 0.5)
    ids, wanted = torch.randint(2, 48, (2, 9)), list[Tensor]()
    laid = list[list[int]]()
    both = Fused(decoder), Fused(decoder)
    for fused in (*both, *both):
        with fused():
            wanted.append(decoder(input_ids=ids, use_cache=False)[0])
        laid.append([weight.data_ptr() for weight in decoder.parameters()])
    assert laid[0] == laid[1] == laid[2] == laid[3]
    assert [torch.equal(each, wanted[0]) for each in wanted] == [True] * 4


def test_layers_that_differ_are_not_joined() -> None:
    assert not joined(nn.ModuleDict({"gate_proj": nn.Linear(8, 4), "up_proj": nn.Linear(8, 4, bias=False)}))
    assert not joined(nn.ModuleDict({"gate_proj": nn.Linear(8, 4), "up_proj": nn.Identity()}))
    assert not joined(nn.ModuleDict({"gate_proj": nn.Linear(8, 4)}))


def test_a_norm_that_computes_something_else_keeps_its_own() -> None:
    class HalfRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x / 2 * self.weight

    assert not Fused(nn.Sequential(HalfRMSNorm()))._norms


@pytest.mark.parametrize("queries", [1, 3])
def test_heads_of_a_group_are_queries_of_one_head(queries: int) -> None:
    query, key, value = torch.randn(2, 6, queries, 8), torch.randn(2, 2, 10, 8), torch.randn(2, 2, 10, 8)
    mask = torch.rand(2, 1, queries, 10) > 0.3
    mask[..., 0] = True
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attend_grouped(query, key, value, mask, 0.3), wanted)
