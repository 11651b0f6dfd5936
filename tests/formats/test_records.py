"""Records become right-padded batches."""

import pytest
import torch

from deepspec.errors import TrainingError
from deepspec.records.batch import Record, collate, collate_rows
from tests.given.drafts.learning import record


def test_batch_is_padded_on_the_right() -> None:
    batch = collate([record("a", 3, [1]), record("b", 5, [2, 4])])
    assert batch.spans() == [(0, 0, 3), (1, 0, 5)]
    assert batch.input_ids[0, 3:].tolist() == [0, 0]
    assert batch.loss_mask.tolist() == [[False, True, False, False, False], [False, False, True, False, True]]
    assert not batch.hidden[0, 3:].any()
    assert batch.to("cpu", torch.bfloat16).last_hidden.dtype == torch.bfloat16


def test_last_states_stand_where_they_can_supervise() -> None:
    """Of 9 tokens, 3 and 7 are supervised: beside them and there states are stored, elsewhere zeros stand."""
    given = record("a", 9, [3, 7])
    batch = collate([given, record("b", 11, [10])])
    assert batch.last_hidden[0].any(1).nonzero().flatten().tolist() == [2, 3, 4, 6, 7, 8]
    assert torch.equal(batch.last_hidden[0, [2, 3, 4, 6, 7, 8]], given.last_hidden)
    assert batch.last_hidden[1].any(1).nonzero().flatten().tolist() == [9, 10]


def test_a_row_may_hold_several_samples() -> None:
    """Samples of 3 and 2 tokens, and one of 4 in the second row, which ends with a position of no sample."""
    a, b, c = record("a", 3, [1]), record("b", 2, [0, 1]), record("c", 4, [3])
    batch = collate_rows([[a, b], [c]])
    assert batch.sample_ids == ("a", "b", "c")
    assert batch.spans() == [(0, 0, 3), (0, 3, 5), (1, 0, 4)]
    assert batch.starts.tolist() == [[0, 0, 0, 3, 3], [0, 0, 0, 0, 0]]
    assert batch.ends.tolist() == [[3, 3, 3, 5, 5], [4, 4, 4, 4, 0]]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(batch.hidden[0], torch.cat([a.hidden, b.hidden]))
    assert torch.equal(batch.last_hidden[0], torch.cat([a.last_hidden, b.last_hidden]))
    assert batch.last_hidden[1].any(1).nonzero().flatten().tolist() == [2, 3]


def test_nothing_ahead_of_a_position_is_another_samples() -> None:
    batch = collate_rows([[record("a", 3, [1]), record("b", 2, [0, 1])], [record("c", 4, [3])]])
    places = torch.arange(1, 11).view(2, 5)
    assert batch.ahead(places, 1).tolist() == [[2, 3, 0, 5, 0], [7, 8, 9, 0, 0]]
    assert batch.ahead(places, 2).tolist() == [[3, 0, 0, 0, 0], [8, 9, 0, 0, 0]]
    moved = batch.ahead(batch.loss_mask, 1)
    assert moved[0].tolist() == [True, False, False, True, False]
    assert (moved.dtype, batch.ahead(places, 1).dtype) == (torch.bool, torch.int64), "a mask stays one"


def test_a_cut_record_is_a_record() -> None:
    """Cut before token 7, position 6 supervises nothing any more."""
    given = record("a", 9, [3, 7])
    assert torch.equal(collate([given.cut(7)]).last_hidden[0, 2:5], given.last_hidden[:3])


def test_record_of_uneven_tensors_is_refused() -> None:
    good = record("a", 3, [1])
    bad = Record(sample_id="x", input_ids=good.input_ids[:2], loss_mask=good.loss_mask, hidden=good.hidden,
                 last_hidden=good.last_hidden)  # fmt: skip
    with pytest.raises(TrainingError, match="sample x: input_ids has 2 rows, its loss mask wants 3"):
        collate([bad])
    with pytest.raises(TrainingError, match="at least one record"):
        collate([])
    with pytest.raises(TrainingError, match="at least one record in each row"):
        collate_rows([[good], []])
