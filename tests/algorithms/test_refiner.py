"""XPress' refiner by hand, and in training: readings of the same rows, and passes over guesses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.slots import RealBlocks, backbone, previous_tokens, real_blocks
from deepspec.algorithms.xpress import guesses
from deepspec.formats.recipe import Objective
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import Head, Rows
from deepspec.losses.terms import Terms
from deepspec.models.heads import RefinerHead
from deepspec.models.whole_head import Whole
from deepspec.proposers.propose import BlockProposer
from deepspec.records.batch import collate, collate_rows
from tests.given.drafts.kinds import of_blocks
from tests.given.drafts.learning import four_records, record, tiny
from tests.given.some import some

OBJECTIVE = Objective(num_anchors=5)


def by_hand() -> RefinerHead:
    """Return a refiner of rank 1 that embeds token t as t, adds to each slot all up to it, and reads 1 and −1."""
    head = RefinerHead((5, 2), rank=1, hidden_size=2, slots=3, mlp_ratio=1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.token_embed.weight.copy_(torch.arange(5.0)[:, None])
        head.in_proj.weight.copy_(torch.tensor([[0.0, 1.0, 1.0]]))
        head.down_g.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.mix_l.fill_(1.0)
        head.readout.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return head


def test_a_refiner_reads_the_token_before_a_slot_the_mean_of_states_and_no_slot_behind() -> None:
    """States with a mean of 2: a = 2 + (3, 1, 4) = 5, 3, 6; with those through each, 5 + 5, 3 + 8, 6 + 14."""
    head, states = by_hand(), torch.tensor([[[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]]])
    seen, tokens = head.seen(states), torch.tensor([[3, 1, 4]])
    assert head.features(seen, tokens)[0, :, 0].tolist() == [10.0, 11.0, 20.0]
    assert head.readout(head.features(seen, tokens))[0, 1].tolist() == [11.0, -11.0]
    other = head.features(seen, torch.tensor([[3, 1, 0]]))
    assert other[0, :2, 0].tolist() == [10.0, 11.0], "a token behind changes nothing"
    entered = head.enter(seen, tokens)
    assert [head.last(entered[:, : slot + 1]).item() for slot in range(3)] == [10.0, 11.0, 20.0]


def test_the_mlp_gates_what_was_mixed() -> None:
    """silu(b)·b for b = 10, with weights of 1: 10 + 10·10·σ(10)."""
    head = by_hand()
    with torch.no_grad():
        for part in (head.mlp_gate, head.mlp_up, head.mlp_down):
            part.weight.fill_(1.0)
    found = head.features(head.seen(torch.full((1, 1, 2), 2.0)), torch.tensor([[3]]))
    assert found.item() == pytest.approx(10 + 100 / (1 + 2.718281828**-10), rel=1e-6)


@pytest.mark.parametrize("layout", ["fill_in", "shift"])
def test_the_first_slot_reads_the_token_before_its_own_where_blocks_are_filled_in(layout: str) -> None:
    """Samples of 4 and 9 tokens in a row: anchors at the first one's third token, at the second's first and second."""
    model, batch = tiny("xpress", layout=layout), collate_rows([[record("a", 4, range(4)), record("b", 9, range(9))]])
    anchors, keep = torch.tensor([[2, 4, 5]]), torch.tensor([[True] * 3])
    blocks = of_blocks("xpress").supervise_blocks(model.config, OBJECTIVE, batch, anchors, keep)
    ids = batch.input_ids[0]
    wanted = {
        "fill_in": [[1, 2, 3, 4], [4, 4, 5, 6], [4, 5, 6, 7]],
        "shift": [[2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]],
    }
    assert torch.equal(previous_tokens(model.config, batch, blocks)[0], ids[torch.tensor(wanted[layout])])


@pytest.mark.parametrize(("layout", "biased"), [("fill_in", False), ("shift", False), ("shift", True)])
def test_as_many_passes_as_drafts_give_what_one_slot_after_another_gives(layout: str, biased: bool) -> None:
    torch.manual_seed(0)
    model = tiny("xpress", layout=layout).eval()
    bias = torch.nn.Parameter(torch.linspace(-0.5, 0.5, len(model.lm_head.weight))) if biased else None
    model.lm_head.register_parameter("bias", bias)
    some(model.refiner_head).readout.weight.data.mul_(5)
    states, tokens = torch.randn(6, 4, 16), torch.arange(12).view(6, 2)
    rows = BlockProposer(model).rows(6, 20, torch.device("cpu"))
    rows.commit(torch.randn(6, 1, 32), tokens, torch.ones(6, dtype=torch.int64))
    with torch.no_grad():
        wanted = rows._sample(tokens[:, 1], states, 0.0, None).tokens
        given = (
            torch.cat((tokens[:, :1], tokens[:, 1:].expand(-1, 3)), 1) if layout == "fill_in" else tokens[:, [1] * 4]
        )
        found = guesses(model, RealBlocks(states, given, torch.arange(24)), model.config.drafts + 1)
    first = model.config.first_slot
    assert torch.equal(found[-1][:, first + 1 :], wanted[:, :-1])
    assert not torch.equal(found[0], found[-1]), "a guess says something else than the last pass"


def rows_of(readings: int) -> tuple[Rows, Head, Whole]:
    """Return rows of 7 slots against 5 target positions, read several times."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    features, weights = made(readings, 7, 3), torch.rand(readings + 1, 7, generator=generator)
    rows = Rows(
        hidden=made(7, 8), labels=torch.arange(7), weights=weights, target=torch.randn(5, 8, generator=generator),
        target_index=torch.tensor([0, 0, 1, 2, 3, 3, 4]), markov=features, markov_weight=made(12, 3),
    )  # fmt: skip
    whole = torch.randn(20, 8, generator=generator)
    return rows, Head(weight=whole[:12], softcap=5.0), Whole(weight=whole, known=torch.arange(12))


@pytest.mark.parametrize("terms", [
    Terms(cross_entropy=0.1, total_variation=0.45), Terms(cross_entropy=1.0),
    Terms(cross_entropy=0.5, reverse_kl=1.0, lk_hybrid=0.5, soft_cross_entropy=0.2),
], ids=["both", "hard", "divergent"])  # fmt: skip
@pytest.mark.parametrize("known", [True, False])
def test_readings_are_as_many_passes_over_the_same_rows(terms: Terms, known: bool) -> None:
    rows, head, whole = rows_of(2)
    head = head if known else replace(head, whole=whole)
    markov = some(rows.markov)
    leaves = (rows.hidden, markov, some(rows.markov_weight))
    loss, measured = chunked_loss(rows, head, terms, chunk_rows=3)
    readings: list[dict[str, Any]] = [
        {"markov": markov[0]},
        {"markov": markov[1]},
        {"markov": None, "markov_weight": None},
    ]
    apart = [
        chunked_loss(replace(rows, weights=weights, **own), head, terms)
        for weights, own in zip(
            rows.weights,
            readings,
            strict=True,
        )
    ]
    wanted = sum((each for each, _ in apart), start=torch.zeros(()))
    torch.testing.assert_close(loss, wanted)
    for name in ("cross_entropy", "acceptance", "correct", "total_variation"):
        each = torch.stack([getattr(one, name) for _, one in apart])
        torch.testing.assert_close(getattr(measured, name), each)
    for mine, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(rows, head, terms)[0], wanted)


def test_the_loss_is_the_sum_of_its_parts_times_their_factors() -> None:
    model, batch = tiny("xpress"), collate(four_records())
    algorithm, losses = ALGORITHMS["xpress"], {}
    for name, changes in {
        "all": {}, "true": {"consistency": 0.0, "base_anchor": 0.0}, "more": {"consistency": 0.6, "base_anchor": 1.2},
    }.items():  # fmt: skip
        part = algorithm.supervise(model.config, OBJECTIVE.but(**changes), batch, range(4))
        result = algorithm.loss(model, batch, part, part.denominators)
        losses[name] = result.loss.item(), algorithm.metrics(result.sums)
    (whole, told), (true, bare), (more, _) = losses["all"], losses["true"], losses["more"]
    assert whole == pytest.approx(true + 0.3 * told["consistency"] + 0.6 * told["base_anchor"], rel=1e-5)
    assert more - true == pytest.approx(2 * (whole - true), rel=1e-4)
    assert not {"consistency", "base_anchor", "tau_base"} & bare.keys()
    assert told["tau"] == pytest.approx(bare["tau"], rel=1e-5)


def test_nothing_is_differentiated_through_a_guess() -> None:
    model, batch = tiny("xpress"), collate(four_records())
    part = ALGORITHMS["xpress"].supervise(model.config, OBJECTIVE, batch, range(4))
    blocks = real_blocks(model.config, batch, part, backbone(model, batch, part))
    assert blocks.hidden.requires_grad
    assert not any(each.requires_grad for each in guesses(model, blocks, 3))
    assert guesses(model, blocks, 0) == []
