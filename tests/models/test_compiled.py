"""What a compiled draft computes otherwise: the keys and values of its context by one product."""

import pytest
import torch

from deepspec.models.compiled import context_keys_values
from deepspec.models.draft import BlockDraft
from tests.given.drafts import pairs
from tests.given.drafts.pairs import DRAFTS, TARGETS


@pytest.mark.parametrize("family", TARGETS)
def test_one_product_gives_every_layers_keys_and_values_and_their_gradients(family):
    model = pairs.draft(TARGETS[family](), **DRAFTS["dspark"]).double()
    assert isinstance(model, BlockDraft)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 9, model.config.block.hidden_size, generator=generator).double().requires_grad_()
    positions = torch.arange(9).expand(2, -1)
    weights = [project.weight for layer in model.blocks() for project in layer.self_attn.into_context()]
    for weight in weights:
        weight.requires_grad_()
    found = []
    for made in (model.context_keys_values(context, positions), context_keys_values(model, context, positions)):
        values = [value for each in made for value in (each.key, each.value)]
        total = sum((value * (number + 1)).square().sum() for number, value in enumerate(values))
        found.append([*values, *torch.autograd.grad(total, [context, *weights])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
