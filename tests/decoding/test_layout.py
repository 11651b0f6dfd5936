"""Packed weights multiply as plain ones do, and are still there to be read."""

import pytest
import torch
from torch import nn

from deepspec.models import layout
from deepspec.models.layout import dense, lay_out_for_decoding


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_packed_layers_give_the_same_products(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(24, 40), nn.Linear(40, 9, bias=False)]
    model = nn.Sequential(*layers).to(dtype).requires_grad_(False)
    x = torch.randn(2, rows, 24, dtype=dtype)
    wanted, weights = model(x), [layer.weight.clone() for layer in layers]
    lay_out_for_decoding(model)
    lay_out_for_decoding(model)  # packed ones stay packed
    torch.testing.assert_close(model(x), wanted, rtol=tolerance, atol=tolerance)
    for layer, weight in zip(layers, weights, strict=True):
        assert torch.equal(dense(layer.weight), weight)
        assert layer.weight.shape == weight.shape


def test_an_embedding_that_shares_its_weight_with_a_head_can_still_be_looked_up() -> None:
    embedding, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    head.weight = embedding.weight
    lay_out_for_decoding(nn.ModuleList([embedding, head]))
    torch.testing.assert_close(embedding(torch.arange(9)), dense(head.weight))


def test_weights_stay_as_they_come_where_torch_has_another_name_for_an_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "OPERATORS", (*layout.OPERATORS, "_no_operator_of_torch"))
    head = nn.Linear(4, 9)
    lay_out_for_decoding(head)
    assert type(head) is nn.Linear
