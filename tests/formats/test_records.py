"""Records become right-padded batches."""

import pytest
import torch

from deepspec.errors import TrainingError
from deepspec.formats.records import Record, collate
from tests.models.drafts import record


def test_batch_is_padded_on_the_right():
    batch = collate([record("a", 3, [1]), record("b", 5, [2, 4])])
    assert batch.lengths.tolist() == [3, 5]
    assert batch.input_ids[0, 3:].tolist() == [0, 0]
    assert batch.loss_mask.tolist() == [[False, True, False, False, False], [False, False, True, False, True]]
    assert not batch.hidden[0, 3:].any()
    assert batch.to("cpu", torch.bfloat16).last_hidden.dtype == torch.bfloat16


def test_record_of_uneven_tensors_is_refused():
    good = record("a", 3, [1])
    bad = Record(sample_id="x", input_ids=good.input_ids[:2], loss_mask=good.loss_mask, hidden=good.hidden,
                 last_hidden=good.last_hidden)  # fmt: skip
    with pytest.raises(TrainingError, match="sample x: tensors of different lengths"):
        collate([bad])
    with pytest.raises(TrainingError, match="at least one record"):
        collate([])
