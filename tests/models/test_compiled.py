"""What a compiled draft computes otherwise, and that it gives what it gives uncompiled."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import statically_known_true

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.slots import backbone
from deepspec.attention.split import TILE
from deepspec.formats.recipe import Objective
from deepspec.models.compiled import compile_draft, context_keys_values
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, collate, on_device
from tests.given.drafts import pairs
from tests.given.drafts.learning import four_records, seen_by, tiny
from tests.given.drafts.pairs import DRAFTS, TARGETS
from tests.given.step.ours import gradients_of
from tests.given.step.shapes import SMALL, SMALL_LAYERS, Shape

OF_MODEL: dict[str, Callable[[Any, Batch, Any], Tensor]] = {
    "dspark": backbone,
    "eagle3": lambda model, batch, _: steps(model, batch, 3),
}
"""Algorithm -> what its model computes in training."""


@pytest.mark.parametrize("family", TARGETS)
def test_one_product_gives_every_layers_keys_and_values_and_their_gradients(family: str) -> None:
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
        assert {len(each) for each in made} <= {9, TILE}
        assert not any(each.cut(len(each)).key[:, :, 9:].any() for each in made)
        values = [value for each in made for value in (each.cut(9).key, each.cut(9).value)]
        total = sum(
            ((value * (number + 1)).square().sum() for number, value in enumerate(values)), torch.zeros(()).double()
        )
        found.append([*values, *torch.autograd.grad(total, [context, *weights])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("algorithm", ["dspark", "dflash2", "eagle3"])
@pytest.mark.parametrize(
    ("backend", "length"),
    [("eager", 150), *(pytest.param("aot_eager", each, marks=pytest.mark.soak) for each in (128, 150))],
)
def test_a_compiled_draft_has_the_gradients_of_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, backend: str, length: int
) -> None:
    """By the code that a card compiles, masks in ranges; what Triton makes of it is no matter here."""
    monkeypatch.setattr("deepspec.algorithms.slots.form_for", lambda device: "split")
    monkeypatch.setattr("deepspec.algorithms.eagle3.form_for", lambda device: "split")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    shape = Shape(SMALL, SMALL_LAYERS, length=length, anchors=8)
    plain, compiled = (gradients_of(algorithm, shape, compiled=compiled) for compiled in (False, True))
    torch.testing.assert_close(compiled[0], plain[0])
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-3, atol=1e-5 * float(plain[1].abs().max()))


def test_blocks_of_a_draft_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.algorithms.slots.form_for", lambda device: "split")
    made = list[int]()

    def backend(graph: GraphModule, inputs: list[Any]) -> Any:
        made.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    gradients_of("dspark", Shape(SMALL, SMALL_LAYERS, length=128, anchors=8), compiled=True)
    assert len(made) == 2  # the context's, and one for five blocks


@pytest.mark.parametrize("algorithm", OF_MODEL)
def test_away_from_the_host_a_second_pass_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch, algorithm: Literal["dspark", "eagle3"]
) -> None:
    """What the first pass brings to a card is there before it: else its code would be compiled anew for the second."""
    for room in ("slots", "eagle3"):
        monkeypatch.setattr(f"deepspec.algorithms.{room}.form_for", lambda device: "split")
    made = list[GraphModule]()

    def backend(graph: GraphModule, inputs: list[Any]) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    model = tiny(algorithm).to("meta")
    batch = collate(seen_by(model, four_records()))
    drawn = ALGORITHMS[algorithm].supervise(model.config, Objective(num_anchors=4), batch, range(4))
    compile_draft(model)
    there, supervision = batch.to("meta", torch.float32), on_device(drawn, "meta")
    OF_MODEL[algorithm](model, there, supervision)
    first = len(made)
    OF_MODEL[algorithm](model, there, supervision)
    assert 0 < first == len(made)


@pytest.mark.parametrize(("algorithm", "length"), [("dspark", 128), ("eagle3", 150)])
def test_compiled_code_knows_that_attention_is_over_whole_tiles(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, length: int
) -> None:
    """Else the kernel asks in each tile whether it is within them: its backward pass took two thirds longer."""
    for room in ("slots", "eagle3"):
        monkeypatch.setattr(f"deepspec.algorithms.{room}.form_for", lambda device: "flex")
    known = list[bool]()

    def backend(graph: GraphModule, inputs: list[Any]) -> Any:
        for node in graph.graph.nodes:
            if node.target is torch.ops.higher_order.flex_attention:
                sizes = [each.meta["example_value"].shape[2] for each in node.args[:3]]
                known.extend(statically_known_true(size % TILE == 0) for size in sizes)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # gradients on a CPU
    torch._dynamo.reset()
    gradients_of(
        algorithm, Shape(SMALL, SMALL_LAYERS, length=length, anchors=64 if length == 128 else 8), compiled=True
    )
    assert known
    assert all(known)
