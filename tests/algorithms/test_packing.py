"""Several samples in one row give what each gives in a row of its own: losses, metrics, gradients, 1e-5."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.anchors import draw_anchors
from deepspec.checkpoint.draft import choose_vocabulary
from deepspec.formats.recipe import TRAITS, AlgorithmName, Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Record, collate, collate_rows
from tests.algorithms.fewer import only
from tests.given.drafts.learning import HEADS, REDUCIBLE, VOCAB, four_records, record, seen_by, tiny
from tests.given.some import some

OBJECTIVE = Objective(num_anchors=5, ttt_length=3)
PUBLIC = OBJECTIVE.but(mask_alignment="deepspec")
EVERY = [
    *(("dspark", OBJECTIVE, heads) for heads in HEADS.values()),
    *((name, OBJECTIVE, {"draft_vocab_size": 20}) for name in REDUCIBLE),
    ("dflash2", OBJECTIVE, {}),
    ("xpress", OBJECTIVE, {}),
    ("xpress", OBJECTIVE.but(slot_weights="dpace", reverse_kl=1.0, consistency_passes=1), {"layout": "shift"}),
    ("xpress", OBJECTIVE.but(consistency=0.0, base_anchor=0.0), {"window": 5}),
    ("dflash", OBJECTIVE, {"layout": "fill_in"}),
    ("dspark", OBJECTIVE.but(slot_weights="dpace", lk_hybrid=1.0), {"layout": "fill_in"}),
    ("eagle3", OBJECTIVE.but(reverse_kl=1.0), {"norms": "eagle3.1"}),
    ("dflash", OBJECTIVE, {}),
    ("eagle3", OBJECTIVE, {}),
    ("peagle", OBJECTIVE, {}),
    ("peagle", OBJECTIVE.but(convention="speculators", depth_ratio=0.9), {"train_embedding": True}),
    ("mtp", OBJECTIVE, {}),
    ("mtp", OBJECTIVE.but(convention="speculators", forward_kl=1.0), {"target": "qwen3_5"}),
    ("eagle3", PUBLIC, {}),
    ("eagle3", PUBLIC, {"draft_vocab_size": 20}),
]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def hard_rows() -> list[list[Record]]:
    """Return two rows: "e" and "f", "a" and "g" meet with the target's own tokens, so that whatever crosses shows."""
    a, b, c, d = four_records()
    return [[c, record("e", 8, range(8)), record("f", 1, [0])], [a, record("g", 5, range(5)), d, b]]


def measured(model: BlockDraft | EagleDraft, objective: Objective, rows: list[list[Record]]) -> dict[str, Tensor]:
    """Return what a batch of these rows gives, flat: loss, sums and gradients by name."""
    algorithm, batch = ALGORITHMS[model.config.algorithm], collate_rows([seen_by(model, row) for row in rows])
    part = algorithm.supervise(model.config, objective, batch, [ord(name) for name in batch.sample_ids])
    result = algorithm.loss(model, batch, part, part.denominators)
    names, parameters = zip(*model.trainable(), strict=True)
    gradients = torch.autograd.grad(result.loss, parameters, allow_unused=True)
    return {"loss": result.loss.detach(), **result.sums, **dict(zip(names, gradients, strict=True))}


def draft(algorithm: AlgorithmName, **recipe: Any) -> BlockDraft | EagleDraft:
    model = tiny(algorithm, **recipe)
    if "draft_vocab_size" in recipe:
        choose_vocabulary(model, (torch.arange(VOCAB) % 5).float())
    return model


@pytest.mark.parametrize(("algorithm", "objective", "recipe"), EVERY)
def test_packed_equals_unpacked(algorithm: AlgorithmName, objective: Objective, recipe: dict[str, Any]) -> None:
    model, rows = draft(algorithm, **recipe), hard_rows()
    packed = measured(model, objective, rows)
    torch.testing.assert_close(packed, measured(model, objective, [[one] for row in rows for one in row]), **CLOSE)
    assert packed["blocks"] > 0
    assert packed["loss"] > 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=4), max_size=3))
def test_packed_equals_unpacked_whatever_the_lengths(drawn: list[list[tuple[int, int]]]) -> None:
    """Of (length, prompt) pairs; what follows the prompt is supervised."""
    names = iter("abcdefghijkl")
    rows = [[record(next(names), long, range(min(prompt, long), long)) for long, prompt in row] for row in drawn]
    rows.append([record("z", 9, range(9)), record("y", 9, range(9), seed=1)])
    for model, objective in ((tiny("dspark"), OBJECTIVE), (tiny("eagle3"), OBJECTIVE), (tiny("eagle3"), PUBLIC)):
        alone = measured(model, objective, [[one] for row in rows for one in row])
        torch.testing.assert_close(measured(model, objective, rows), alone, **CLOSE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_sample_learns_from_another_in_its_row(algorithm: AlgorithmName) -> None:
    """Where one sample alone is supervised, no other's states have a gradient."""
    model = tiny(algorithm)
    batch = collate_rows([seen_by(model, row) for row in hard_rows()])
    part = ALGORITHMS[algorithm].supervise(model.config, OBJECTIVE, batch, range(len(batch.sample_ids)))
    for row, start, end in batch.spans():
        within = torch.zeros_like(batch.loss_mask)
        within[row, start:end] = True
        of_one = within[:, None] if algorithm in ("eagle3", "mtp") else within.gather(1, part.anchors)
        of_one = of_one if not TRAITS[algorithm].blocks else of_one[..., None]
        states = batch.hidden.clone().requires_grad_()
        alone = only(part, of_one)
        result = ALGORITHMS[algorithm].loss(model, replace(batch, hidden=states), alone, part.denominators)
        result.loss.backward()
        assert not some(states.grad)[~within].any()
        assert some(states.grad)[within].any() == (end - start > 1)


def test_anchors_do_not_depend_on_what_lies_in_the_row() -> None:
    a, b, c, _ = four_records()
    packed, keep = draw_anchors(collate_rows([[b, a], [c]]), 3, [12, 11, 13])
    alone = [draw_anchors(collate([one]), 3, [key])[0][0] for one, key in ((b, 12), (a, 11), (c, 13))]
    assert packed[0].tolist() == [*alone[0].tolist(), *(alone[1] + len(b.input_ids)).tolist()]
    assert packed[1, :3].tolist() == alone[2].tolist()
    assert keep.sum(1).tolist() == [6, 3]
