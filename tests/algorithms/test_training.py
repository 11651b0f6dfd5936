"""What the algorithms supervise, and that splitting a batch changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.algorithms import ALGORITHMS
from deepspec.algorithms.anchors import draw_anchors
from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.masks import MaskForm
from deepspec.algorithms.rows import order_by_target, ratio, scattered
from deepspec.algorithms.slots import backbone
from deepspec.checkpoint.draft import adopt_target, choose_vocabulary
from deepspec.errors import TrainingError
from deepspec.formats.recipe import AlgorithmName, Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Batch, Record, collate, collate_rows
from tests.algorithms.fewer import only
from tests.given.drafts.kinds import of_blocks
from tests.given.drafts.learning import HEADS, MASK, REDUCIBLE, SIZE, VOCAB, four_records, record, seen_by, tiny
from tests.given.drafts.masks import use_form
from tests.given.some import some

OBJECTIVE = Objective(num_anchors=5, ttt_length=3)
EVERY = [*(("dspark", heads) for heads in HEADS.values()), ("dflash", {}), ("dflash2", {}), ("eagle3", {}),
         ("xpress", {}), ("xpress", {"layout": "shift"}),
         ("dspark", {"layout": "fill_in"}), ("eagle3", {"norms": "eagle3.1"}), ("peagle", {}), ("mtp", {}),
         ("mtp", {"target": "qwen3_5"})]  # fmt: skip
KEYS = {"a": 11, "b": 12, "c": 13, "d": 14}


def _keys(batch: Batch) -> list[int]:
    return [KEYS[name] for name in batch.sample_ids]


def _gradients(
    model: BlockDraft | EagleDraft, groups: list[list[Record]]
) -> tuple[Tensor, tuple[Tensor, ...], dict[str, float]]:
    """Return the summed gradients and metrics of micro-batches, denominators taken over all of them."""
    algorithm = ALGORITHMS[model.config.algorithm]
    batches = [collate(seen_by(model, group)) for group in groups]
    parts = [algorithm.supervise(model.config, OBJECTIVE, batch, _keys(batch)) for batch in batches]
    total: dict[str, Any] = {name: sum(part.denominators[name] for part in parts) for name in parts[0].denominators}
    results = [algorithm.loss(model, batch, part, total) for batch, part in zip(batches, parts, strict=True)]
    loss = sum((result.loss for result in results), start=torch.zeros(()))
    grads = torch.autograd.grad(loss, [parameter for _, parameter in model.trainable()])
    sums: dict[str, Any] = {name: sum(result.sums[name] for result in results) for name in results[0].sums}
    return loss, grads, algorithm.metrics(sums)


@pytest.mark.parametrize(("algorithm", "heads"), EVERY)
def test_gradients_do_not_depend_on_how_a_batch_is_split(algorithm: AlgorithmName, heads: dict[str, Any]) -> None:
    model = tiny(algorithm, **heads)
    a, b, c, d = four_records()
    wanted_loss, wanted, metrics = _gradients(model, [[a, b, c, d]])
    for groups in ([[a], [b], [c], [d]], [[d, b], [c, a]]):
        loss, grads, split_metrics = _gradients(model, groups)
        torch.testing.assert_close(loss, wanted_loss)
        assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        for got, grad in zip(grads, wanted, strict=True):
            torch.testing.assert_close(got, grad, atol=1e-6, rtol=1e-4)


def test_anchors_depend_on_the_key_and_the_sample_alone() -> None:
    a, b, c, _ = four_records()
    alone, _ = draw_anchors(collate([b]), 3, [12])
    among, _ = draw_anchors(collate([a, b, c]), 3, [11, 12, 13])
    assert alone.tolist() == among[1:2].tolist()
    others = {tuple(draw_anchors(collate([b]), 3, [key])[0][0].tolist()) for key in range(20)}
    assert len(others) > 1


def test_blocks_are_no_more_than_the_fullest_sample_needs() -> None:
    anchors, keep = draw_anchors(collate([record("b", 9, range(2, 7))]), 512, [1])
    assert anchors.tolist() == [[2, 3, 4, 5]]
    assert keep.all()


def test_supervised_slots_are_a_prefix_of_the_block() -> None:
    """Anchor 3 predicts 4, 5, 6, 7; 6 is not the target's, so slots 2 and 3 are not supervised."""
    model = tiny()
    batch = collate([record("a", 9, [3, 4, 5, 7])])
    supervision = of_blocks("dspark").supervise_blocks(
        model.config, Objective(slot_decay=2.0), batch, torch.tensor([[3]]), torch.tensor([[True]])
    )
    assert supervision.supervised.tolist() == [[[True, True, False, False]]]
    assert supervision.denominators["weight"].item() == pytest.approx(1 + 2.718281828**-0.5)


def test_eagle_supervises_by_the_predicted_token() -> None:
    """Tokens 3 and 4 are the target's: step s supervises positions 1 − s and 2 − s."""
    model, batch = tiny("eagle3"), collate([record("a", 8, [3, 4])])
    supervision = ALGORITHMS["eagle3"].supervise(model.config, OBJECTIVE, batch, [0])
    where = [step.nonzero()[:, 0].tolist() for step in supervision.supervised[0]]
    assert where == [[1, 2], [0, 1], [0]]
    assert supervision.denominators["steps"].tolist() == [2, 2, 1]


def test_eagle_supervises_as_the_public_checkpoints_on_demand() -> None:
    """By the feature's token, without the sample's last, divided by all positions."""
    model, batch = tiny("eagle3"), collate([record("a", 8, [3, 4, 7])])
    objective = OBJECTIVE.but(mask_alignment="deepspec")
    supervision = ALGORITHMS["eagle3"].supervise(model.config, objective, batch, [0])
    where = [step.nonzero()[:, 0].tolist() for step in supervision.supervised[0]]
    assert where == [[3, 4], [2, 3], [1, 2]]
    assert supervision.denominators["steps"].tolist() == [8, 8, 8]


def test_sample_that_contains_the_mask_token_is_refused() -> None:
    sample = record("a", 9, range(2, 7))
    sample.input_ids[1] = MASK
    with pytest.raises(TrainingError, match="contains the mask token 39"):
        ALGORITHMS["dspark"].supervise(tiny().config, OBJECTIVE, collate([sample]), [0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batch_without_anything_supervised_costs_nothing(algorithm: AlgorithmName) -> None:
    model = tiny(algorithm)
    batch = collate(seen_by(model, [record("a", 9, [])]))
    supervision = ALGORITHMS[algorithm].supervise(model.config, OBJECTIVE, batch, [0])
    result = ALGORITHMS[algorithm].loss(model, batch, supervision, supervision.denominators)
    result.loss.backward()
    assert result.loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for _, parameter in model.trainable())
    assert ALGORITHMS[algorithm].metrics(result.sums)["tau"] == 0


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
def test_tau_is_one_plus_the_chances_of_every_prefix(algorithm: AlgorithmName) -> None:
    """A draft that knows nothing against a target that knows nothing: both uniform, so each token is kept."""
    model = tiny(algorithm)
    model.lm_head.weight.data.zero_()
    if isinstance(model, BlockDraft):
        some(model.markov_head).markov_w2.weight.data.zero_()
    batch = collate([record("a", 20, range(20))])
    supervision = ALGORITHMS[algorithm].supervise(model.config, OBJECTIVE.but(num_anchors=1), batch, [5])
    supervision = only(supervision, torch.arange(supervision.supervised.shape[-1]) < 3)
    result = ALGORITHMS[algorithm].loss(model, batch, supervision, supervision.denominators)
    assert ALGORITHMS[algorithm].metrics(result.sums)["tau"] == pytest.approx(4.0)  # 3 slots or steps, and the bonus


def test_dflash_leaves_acceptance_out_on_demand() -> None:
    model, batch = tiny("dflash"), collate(four_records())
    supervision = ALGORITHMS["dflash"].supervise(model.config, OBJECTIVE, batch, _keys(batch))
    full = ALGORITHMS["dflash"].loss(model, batch, supervision, supervision.denominators)
    bare = ALGORITHMS["dflash"].loss(model, batch, supervision, supervision.denominators, measure=False)
    torch.testing.assert_close(full.loss, bare.loss)
    assert "tau" in ALGORITHMS["dflash"].metrics(full.sums)
    assert "tau" not in ALGORITHMS["dflash"].metrics(bare.sums)


@pytest.mark.parametrize("form", ["split", "flex"])
@pytest.mark.parametrize("row", [1, 2])
def test_every_form_of_attention_gives_the_numbers_of_sdpa(
    monkeypatch: pytest.MonkeyPatch, row: int, form: MaskForm
) -> None:
    records = four_records()
    model, batch = tiny().eval(), collate_rows([records[start : start + row] for start in range(0, 4, row)])
    supervision = ALGORITHMS["dspark"].supervise(model.config, OBJECTIVE, batch, _keys(batch))
    eagle = tiny("eagle3").eval()
    with torch.no_grad():
        dense, dense_steps = backbone(model, batch, supervision), steps(eagle, batch, 3)
        use_form(monkeypatch, form)
        real = supervision.keep.repeat_interleave(4, dim=1)
        torch.testing.assert_close(backbone(model, batch, supervision)[real], dense[real], atol=1e-5, rtol=1e-4)
        found = steps(eagle, batch, 3)
        for step in range(3):
            inside = torch.arange(batch.starts.shape[1]) < batch.ends - step
            torch.testing.assert_close(found[:, step][inside], dense_steps[:, step][inside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("algorithm", "heads"), EVERY)
@pytest.mark.parametrize("row", [1, 2])
def test_split_attention_gives_the_gradients_of_sdpa(
    monkeypatch: pytest.MonkeyPatch, row: int, algorithm: AlgorithmName, heads: dict[str, Any]
) -> None:
    model = tiny(algorithm, **heads)
    records = seen_by(model, four_records())
    batch = collate_rows([records[start : start + row] for start in range(0, 4, row)])
    found = []
    for form in ("dense", "split"):
        use_form(monkeypatch, form)
        supervision = ALGORITHMS[algorithm].supervise(model.config, OBJECTIVE, batch, _keys(batch))
        loss = ALGORITHMS[algorithm].loss(model, batch, supervision, supervision.denominators).loss
        found.append((loss, *torch.autograd.grad(loss, [parameter for _, parameter in model.trainable()])))
    for dense, split in zip(*found, strict=True):
        torch.testing.assert_close(split, dense, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("algorithm", REDUCIBLE)
def test_reduced_vocabulary_trains_only_on_tokens_that_it_knows(algorithm: AlgorithmName) -> None:
    model = tiny(algorithm, draft_vocab_size=8)
    counts = torch.zeros(VOCAB)
    batch = collate([record("a", 14, range(4, 14))])
    counts[:10] = torch.arange(10.0, 0, -1)
    coverage = choose_vocabulary(model, counts)
    assert some(model.known_ids()).tolist() == list(range(8))
    assert coverage == pytest.approx(52 / 55)
    head = torch.randn(VOCAB, SIZE)
    adopt_target(model, head, head)
    torch.testing.assert_close(model.lm_head.weight.data, head[:8])
    batch.input_ids[:] = 20
    supervision = ALGORITHMS[algorithm].supervise(model.config, OBJECTIVE, batch, [0])
    result = ALGORITHMS[algorithm].loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == 0
    assert result.sums["known"] == 0
    assert ALGORITHMS[algorithm].metrics(result.sums)["tau"] == 1  # nothing is accepted
    batch.input_ids[:] = 5
    result = ALGORITHMS[algorithm].loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() > 0
    assert ALGORITHMS[algorithm].metrics(result.sums)["tau"] > 1


def test_a_reduced_vocabulary_numbers_labels_as_its_head_does() -> None:
    model, batch = tiny("dflash", draft_vocab_size=8), collate([record("a", 14, range(4, 14))])
    choose_vocabulary(model, (torch.arange(VOCAB) % 5).float())
    assert some(model.known_ids()).tolist() == list(range(4, VOCAB, 5))
    batch.input_ids[:] = 14  # the third that it knows
    supervision = ALGORITHMS["dflash"].supervise(model.config, OBJECTIVE, batch, [0])
    result = ALGORITHMS["dflash"].loss(model, batch, supervision, supervision.denominators)
    cross_BNK = (
        -model.head(backbone(model, batch, supervision)).log_softmax(-1)[..., 2].view(supervision.keep.numel(), 4)
    )
    weights = supervision.supervised[0] * supervision.slot_weights
    torch.testing.assert_close(result.loss, (cross_BNK * weights).sum() / (weights.sum() + 1e-6))


def test_rows_of_one_target_lie_side_by_side() -> None:
    supervised = torch.tensor([[True, False, True], [True, True, False]])
    order = order_by_target(supervised, torch.tensor([[4, 0, 2], [4, 4, 4]]))
    assert order.rows.tolist() == [2, 0, 3, 4]
    assert order.target_index.tolist() == [0, 1, 2, 2]
    assert list(zip(order.target_batch_rows.tolist(), order.target_positions.tolist(), strict=True)) == [
        (0, 2), (0, 4), (1, 4)]  # fmt: skip
    grid = scattered(supervised, order.rows, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert grid.tolist() == [[2, 0, 1], [3, 4, 0]]
    assert ratio(torch.tensor(3.0), torch.tensor(0)) == 0
