"""P-EAGLE's chains: how many are drawn, what hangs on what, and what is counted of them."""

import pytest
import torch

from deepspec.algorithms.base import PassWork
from deepspec.algorithms.chains import draw_chains, entries
from deepspec.algorithms.masks import chains_mask
from deepspec.algorithms.peagle import PEagle
from deepspec.checkpoint.draft import adopt_target
from deepspec.formats.recipe import Objective
from deepspec.records.batch import collate, collate_rows
from deepspec.start.initial import initialize
from tests.given.drafts.learning import MASK, SIZE, VOCAB, four_records, record, tiny
from tests.given.drafts.masks import dense
from tests.given.some import some

PEAGLE = PEagle()
HALF = Objective(depth_ratio=0.5, depth_ratio_min=0.2)


def test_a_share_of_chains_that_falls_with_their_depth_is_drawn() -> None:
    """Ten supervised entries: ⌊9·0.5⌋ chains reach depth 1, ⌊8·0.25⌋ depth 2, ⌊7·0.2⌋ depth 3."""
    batch = collate([record("a", 14, range(4, 14))])
    for key in range(5):
        lengths = draw_chains(tiny("peagle").config, HALF, batch, [key])
        assert [int((lengths >= depth).sum()) for depth in (1, 2, 3, 4)] == [4, 2, 1, 0]


def test_a_chain_ends_where_the_answer_does_and_begins_where_a_round_can() -> None:
    """Of tokens 4 … 8 each can be predicted: positions 2 … 6; all chains are kept, up to three mask tokens long."""
    batch, every = collate([record("a", 12, range(4, 9))]), Objective(depth_ratio=1.0)
    config = tiny("peagle").config
    lengths = draw_chains(config, every, batch, [0])
    assert int((lengths >= 1).sum()) == 4
    assert lengths[0].tolist()[7:] == [0] * 5
    assert (lengths[0] <= torch.tensor([0, 0, 3, 3, 2, 1, 0, 0, 0, 0, 0, 0])).all()
    theirs = draw_chains(config, every.but(convention="speculators"), batch, [0])
    assert theirs[0].nonzero().flatten().tolist()[0] >= 2  # the position before the first that they supervise
    few = draw_chains(config, every.but(num_anchors=2), batch, [0])
    assert int((few >= 1).sum()) == 1  # ⌊(2 − 1)·1⌋


def test_chains_do_not_depend_on_what_lies_in_the_row() -> None:
    a, b, c, _ = four_records()
    config = tiny("peagle").config
    packed = draw_chains(config, HALF, collate_rows([[b, a], [c]]), [12, 11, 13])
    alone = [draw_chains(config, HALF, collate([one]), [key])[0].tolist() for one, key in ((b, 12), (a, 11), (c, 13))]
    assert packed[0, :23].tolist() == alone[0] + alone[1]
    assert packed[1, :17].tolist() == alone[2]


def test_what_an_entry_sees() -> None:
    """A sample of three tokens; two mask tokens behind position 0, one behind position 1, and one that pads."""
    starts, ends = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[3, 3, 3, 0]])
    mask = dense(chains_mask(starts, ends, torch.tensor([[0, 0, 1, 0]]), torch.tensor([[0, 0, 2, 3]])))
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_an_entry_depends_on_the_context_through_its_anchor_alone() -> None:
    model, batch = tiny("peagle"), collate([record("a", 9, range(9))])
    first, lengths = torch.zeros_like(batch.loss_mask), torch.zeros_like(batch.input_ids)
    lengths[0, 3] = 3
    chains = PEAGLE.supervise_chains(model.config, HALF, batch, (first, lengths))
    states = batch.hidden.clone().requires_grad_()
    changed = batch.__class__(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__} | {"hidden": states}
    )
    entries(model, changed, chains)[0, -1].sum().backward()
    assert some(states.grad)[0].abs().sum(-1).gt(0).tolist() == [True] * 4 + [False] * 5


def test_the_accepted_length_is_the_sum_of_the_chances_of_every_depth() -> None:
    """Draft and target know nothing: every token is kept, at each of the four depths."""
    model = tiny("peagle")
    model.lm_head.weight.data.zero_()
    batch = collate([record("a", 20, range(20))])
    supervision = PEAGLE.supervise(model.config, HALF, batch, [5])
    result = PEAGLE.loss(model, batch, supervision, supervision.denominators)
    found = PEAGLE.metrics(result.sums)
    assert found["tau"] == pytest.approx(5.0)
    assert [found[f"accept@{depth}"] for depth in range(4)] == pytest.approx([1.0] * 4)
    assert result.sums["supervised"].tolist() == [18, 8, 4, 3]  # ⌊17·0.5⌋, ⌊16·0.25⌋, ⌊15·0.2⌋


def test_work_counts_positions_and_mask_tokens() -> None:
    """Three positions that see 1, 2 and 3; two mask tokens behind position 0, which see 2 and 3."""
    batch = collate([record("a", 3, range(3))])
    first, lengths = torch.tensor([[True, False, False]]), torch.tensor([[2, 0, 0]])
    work = PEAGLE.supervise_chains(tiny("peagle").config, HALF, batch, (first, lengths)).work
    assert work == PassWork(context=3, slots=5, pairs=6 + 5, rows=1, targets=1)


def test_a_trained_embedding_is_the_drafts_own() -> None:
    model = tiny("peagle", train_embedding=True)
    shared = torch.randn(VOCAB, SIZE)
    adopt_target(model, shared, shared)
    initialize(model, seed=1)
    torch.testing.assert_close(model.embed_tokens.weight.data, shared)
    with torch.no_grad():
        model.embed_tokens.weight[MASK] += 1
    torch.testing.assert_close(model.lm_head.weight.data, shared)
    assert "embed_tokens.weight" in dict(model.trainable())
    assert "embed_tokens.weight" not in dict(tiny("peagle").trainable())
