"""Weights of slots, by hand, and what is supervised in each layout and by each convention."""

import pytest
import torch

from deepspec.algorithms.slots import BlockSupervision, previous_tokens
from deepspec.algorithms.weights import by_slot, dpace
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, collate
from tests.given.drafts.kinds import of_blocks
from tests.given.drafts.learning import record, tiny


def test_weights_by_place() -> None:
    e = torch.e
    assert by_slot(3, 1.0, "shift").tolist() == pytest.approx([1, 1 / e, 1 / e**2])
    assert by_slot(3, 1.0, "fill_in").tolist() == pytest.approx([0, 1, 1 / e])
    assert by_slot(3, 0.0, "fill_in").tolist() == [0, 1, 1]


def test_dpace_by_hand() -> None:
    """Chances ½, ¼, and of a slot that is not supervised; α = ½: s = ¾, ⅝, 1, so P = 0.75, 0.46875."""
    cross = -torch.tensor([[0.5, 0.25, 0.9]]).log()
    supervised = torch.tensor([[True, True, False]])
    assert dpace(cross, supervised, 0.5).tolist() == [pytest.approx([0.75 + 0.46875, 0.46875, 0])]
    assert dpace(cross, supervised, 1.0).tolist() == [[2, 1, 0]]


def test_dpace_is_not_differentiated() -> None:
    cross = torch.ones(1, 2, requires_grad=True)
    assert not dpace(cross, torch.ones(1, 2, dtype=torch.bool), 0.5).requires_grad


def grids(layout: str, convention: str) -> tuple[BlockDraft, Batch, BlockSupervision]:
    """Return supervision of an anchor at 5 in a sample of 12 tokens, of which 4, 5, 6, 7 and 9 are the target's."""
    model = tiny("dflash", layout=layout, block_size=5)
    batch = collate([record("a", 12, [4, 5, 6, 7, 9])])
    found = of_blocks("dflash").supervise_blocks(
        model.config, Objective(convention=convention), batch, torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool)
    )
    return model, batch, found


def test_a_slot_that_shifts_predicts_the_next_token() -> None:
    _, _, found = grids("shift", "deepspec")
    assert found.labels.tolist() == [[[6, 7, 8, 9, 10]]]
    assert found.supervised.tolist() == [[[True, True, False, False, False]]]  # 8 ends the prefix


def test_a_slot_that_is_filled_in_predicts_its_own_token_and_the_first_none() -> None:
    model, batch, found = grids("fill_in", "deepspec")
    assert found.labels.tolist() == [[[5, 6, 7, 8, 9]]]
    assert found.supervised.tolist() == [[[False, True, True, False, False]]]
    tokens = batch.input_ids[0]
    assert previous_tokens(model.config, batch, found)[0, 0].tolist() == tokens[[5, 5, 6, 7, 8]].tolist()


def test_by_the_convention_of_speculators_a_hole_ends_nothing() -> None:
    _, _, found = grids("fill_in", "speculators")
    assert found.supervised.tolist() == [[[False, True, True, False, True]]]
    assert found.denominators["weight"] == 3
    _, _, found = grids("shift", "speculators")  # by the mask of the token before
    assert found.supervised.tolist() == [[[True, True, True, False, True]]]


def test_a_block_that_is_filled_in_learns_what_one_of_fewer_slots_that_shifts_does() -> None:
    """Five slots that are filled in propose the same four tokens, by the same weights."""
    _, _, filled = grids("fill_in", "deepspec")
    _, _, shifted = grids("shift", "deepspec")
    assert torch.equal(filled.supervised[..., 1:], shifted.supervised[..., :4])
    assert torch.equal(filled.slot_weights[1:], shifted.slot_weights[:4])
