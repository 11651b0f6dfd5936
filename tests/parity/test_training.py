"""Training against golden numbers: inputs, masks, logits, confidences, loss terms, metrics and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.masks import Blocks, blocks_mask, steps_mask
from deepspec.algorithms.slots import backbone, block_inputs, previous_tokens
from tests.given import golden
from tests.given.drafts.masks import dense, use_form
from tests.given.golden_training import BLOCK_CASES, EAGLE_CASES, block_setting, check_gradients, eagle_setting

LOGITS: dict[str, Any] = {"atol": 5e-5, "rtol": 0.0}
LOSS = 1e-5


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_inputs_labels_and_masks(case: Path) -> None:
    _, model, batch, supervision = block_setting(case)
    wanted = golden.tensors(case, "expected.safetensors")
    ids, positions = block_inputs(model.config, batch, supervision)
    assert torch.equal(ids, wanted["noise_ids"])
    assert torch.equal(positions, wanted["draft_position_ids"])
    assert torch.equal(supervision.supervised, wanted["eval_mask"])
    length = batch.input_ids.shape[1]
    size = model.config.block_size
    mask = dense(blocks_mask(Blocks(supervision.starts, supervision.anchors, supervision.keep, size), length))
    assert torch.equal(mask, wanted["attention_mask_dense"])
    labels = batch.input_ids[:, None].expand(-1, ids.shape[1] // size, -1).gather(2, supervision.labels)
    real = supervision.keep[..., None].expand_as(labels)
    assert torch.equal(labels[real], wanted["target_ids"][real])


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_states_logits_and_confidences(case: Path) -> None:
    _, model, batch, supervision = block_setting(case)
    wanted = golden.tensors(case, "expected.safetensors")
    with torch.no_grad():
        hidden = backbone(model, batch, supervision)
        torch.testing.assert_close(hidden, wanted["backbone_hidden"], **LOGITS)
        real = supervision.keep
        blocks = hidden.unflatten(1, (-1, model.config.block_size))[real]
        logits, embedded = model.head(blocks), None
        if model.markov_head is not None:
            embedded = model.markov_head.embed(previous_tokens(model.config, batch, supervision)[real])
            logits = logits + model.markov_head.markov_w2(model.markov_head.sequence(embedded, blocks))
        torch.testing.assert_close(logits, wanted["draft_logits"][real], **LOGITS)
        assert ("confidence_pred" in wanted) == model.config.confidence_head
        if model.config.confidence_head:
            torch.testing.assert_close(model.confidence(blocks, embedded), wanted["confidence_pred"][real], **LOGITS)
        if "aligned_target_logits" in wanted:
            at = supervision.labels[real] - 1
            rows = real.nonzero()[:, :1].expand_as(at)
            aligned = model.head(batch.last_hidden[rows, at])
            torch.testing.assert_close(aligned, wanted["aligned_target_logits"][real], **LOGITS)


@pytest.fixture(params=["dense", "split"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as a CPU likes them, and as a GPU does."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_loss_terms_and_metrics(case: Path) -> None:
    algorithm, model, batch, supervision = block_setting(case)
    told = golden.expected(case)
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    names = {"ce": "cross_entropy", "l1": "total_variation", "confidence": "confidence"}
    for short, name in names.items():
        if told["loss_terms"][f"{short}_loss_den"]:
            assert result.sums[name].item() == pytest.approx(told["loss_terms"][f"{short}_loss_num"], rel=LOSS)
            assert result.sums["weight"].item() == pytest.approx(told["loss_terms"][f"{short}_loss_den"], rel=LOSS)
    found = algorithm.metrics(result.sums)
    for slot in range(model.config.block_size):
        assert found[f"accept@{slot}"] == pytest.approx(metric(told, f"accept_rate@{slot}"), abs=1e-5)
    assert found["tau"] == pytest.approx(metric(told, "tau_probabilistic"), rel=LOSS)


@pytest.mark.parametrize("case", EAGLE_CASES)
def test_eagle_masks(case: Path) -> None:
    _, _, batch, supervision = eagle_setting(case)
    wanted = golden.tensors(case, "expected.safetensors")
    assert torch.equal(supervision.supervised.float(), wanted["position_mask"])
    for step in range(supervision.supervised.shape[1]):
        mask = dense(steps_mask(batch.starts, batch.ends, step))
        valid = batch.ends[:, 0] - step
        inside = torch.arange(batch.input_ids.shape[1])[:, None] < valid[:, None, None, None]
        assert torch.equal(mask & inside, wanted[f"attention_mask_dense.{step}"])


@pytest.mark.parametrize("case", EAGLE_CASES)
def test_eagle_states_and_logits_of_every_step(case: Path) -> None:
    _, model, batch, supervision = eagle_setting(case)
    wanted = golden.tensors(case, "expected.safetensors")
    with torch.no_grad():
        outputs = steps(model, batch, supervision.supervised.shape[1])
        torch.testing.assert_close(outputs, wanted["hidden_states"], **LOGITS)
        torch.testing.assert_close(model.logits(outputs), wanted["draft_logits"], **LOGITS)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", EAGLE_CASES)
def test_eagle_loss_and_metrics_of_every_step(case: Path) -> None:
    algorithm, model, batch, supervision = eagle_setting(case)
    told = golden.expected(case)
    assert supervision.denominators["steps"].tolist() == told["normalizers"]
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    found = algorithm.metrics(result.sums)
    for step, loss in enumerate(told["step_losses"]):
        assert found[f"soft_cross_entropy@{step}"] == pytest.approx(loss, rel=LOSS)
        assert found[f"accept@{step}"] == pytest.approx(metric(told, f"accept_rate@{step}"), abs=1e-5)
        assert found[f"correct@{step}"] == pytest.approx(metric(told, f"accuracy@{step}"), abs=1e-6)
    assert found["tau"] == pytest.approx(metric(told, "tau_probabilistic"), rel=LOSS)
    assert found["tau_greedy"] == pytest.approx(metric(told, "tau_greedy"), rel=LOSS)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_gradients(case: Path) -> None:
    check_gradients(case, *block_setting(case))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", EAGLE_CASES)
def test_eagle_gradients(case: Path) -> None:
    check_gradients(case, *eagle_setting(case))


def metric(told: dict[str, Any], name: str) -> float:
    entry = told["metrics"][f"train/{name}"]
    return sum(entry["num"]) / sum(entry["den"]) if sum(entry["den"]) else 0.0
