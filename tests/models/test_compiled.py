"""What a compiled draft computes otherwise, and that it gives what it gives uncompiled."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor.lowering import lowerings
from torch.fx import GraphModule

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.slots import backbone
from deepspec.attention.split import TILE
from deepspec.formats.recipe import Objective
from deepspec.models.compiled import compile_draft, context_keys_values
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, Record, collate, on_device
from deepspec.steps.reader import MicroBatch
from deepspec.train.loop import Loop
from tests.given.drafts import pairs
from tests.given.drafts.learning import four_records, seen_by, tiny
from tests.given.drafts.pairs import DRAFTS, TARGETS
from tests.given.step.ours import gradients_of, loop_of, record
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
        assert {len(each) for each in made} <= {9, 2 * TILE}
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


def on_a_card(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any] | str) -> None:
    """Let a backend have what a card compiles; attention's gradients are computed on a CPU, too."""
    for room in ("slots", "eagle3"):
        monkeypatch.setattr(f"deepspec.algorithms.{room}.form_for", lambda device: "flex")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    torch._dynamo.reset()


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
def test_inductor_sees_that_attention_is_over_whole_tiles(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """Else the kernel asks in each tile whether it is within them: its backward pass took two thirds longer.

    What inductor of torch 2.11 asks where it makes the kernel is how a size is written (`size % 128 != 0`), not what
    is known of it; and by then views that change nothing are gone. So this asks there, of its own lowering.
    """
    sizes = list[Any]()

    def lowered(query: Any, key: Any, value: Any, *_: Any) -> Any:
        sizes.extend(each.get_size()[2] for each in (query, key, value))
        raise InterruptedError

    on_a_card(monkeypatch, "inductor")
    monkeypatch.setitem(lowerings, torch.ops.higher_order.flex_attention, lowered)
    shape = Shape(SMALL, SMALL_LAYERS, length=256, anchors=128)  # whole tiles by themselves, of which nothing is known
    with pytest.raises(Exception, match="InterruptedError"):
        gradients_of(algorithm, shape, compiled=True)
    assert sizes
    assert [str(size) for size in sizes if size % TILE != 0] == []


@pytest.mark.parametrize(("algorithm", "graphs"), [("dspark", 2), ("eagle3", 3)])
def test_samples_of_any_length_are_compiled_twice_alone_and_several(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, graphs: int
) -> None:
    """Whole tiles or not, one tile or many: each would be a minute in the middle of a run."""
    made = list[int]()

    def backend(graph: GraphModule, inputs: list[Any]) -> Any:
        made.append(len(inputs))
        return graph.forward

    on_a_card(monkeypatch, backend)
    loop = loop_of(algorithm, Shape(SMALL, SMALL_LAYERS, length=64, anchors=64), compiled=True)
    for rows in (1, 2, 3):
        for length in (900, 256, 40):  # the longest first, as the memory trial has it
            micro = micro_batch_of(loop, [record(Shape(SMALL, SMALL_LAYERS, length, 64), row) for row in range(rows)])
            loop.task.loss(micro, micro.supervision.denominators).loss.backward()
            loop.optimizer.forget()
        assert len(made) == graphs * min(rows, 2), (rows, made)


def micro_batch_of(loop: Loop, records: list[Record]) -> MicroBatch:
    """Return a micro-batch of records, a row each."""
    batch = collate(records)
    drawn = loop.task.supervise(batch, range(len(records)))
    return MicroBatch(batch=batch, supervision=drawn).to(loop.task.device, loop.task.dtype)


def test_what_is_compiled_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epsilons and scales are constants: taken for inputs, they would have all of it traced a second time."""
    traced = list[int]()

    def tracer(graph: GraphModule, inputs: list[Any]) -> Any:
        traced.append(len(inputs))
        return aot_eager(graph, inputs)

    monkeypatch.setattr("deepspec.algorithms.slots.form_for", lambda device: "split")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=tracer))
    torch._dynamo.reset()
    gradients_of("dspark", Shape(SMALL, SMALL_LAYERS, length=128, anchors=8), compiled=True)
    assert len(traced) == 2  # the context's, and one for five blocks
