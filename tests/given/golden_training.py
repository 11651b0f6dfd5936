"""Golden cases of training, read as ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.algorithms.base import Algorithm, LossResult
from deepspec.algorithms.blocks import BlockAlgorithm
from deepspec.algorithms.eagle3 import Eagle3, EagleSupervision
from deepspec.algorithms.slots import BlockSupervision
from deepspec.checkpoint.draft import load_draft
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Batch
from tests.given import golden
from tests.given.drafts.kinds import block_draft, of_blocks, step_draft

FILES = ("draft/config.json", "batch.safetensors", "expected.json", "expected.safetensors")
BLOCK_CASES = golden.cases("train", *FILES, algorithm="blocks")
EAGLE_CASES = golden.cases("train", *FILES, algorithm="eagle3")
GRADIENT = 1e-4


def read_batch(tensors: Mapping[str, Any]) -> Batch:
    """Return a case's samples, a row each."""
    mask = tensors["attention_mask"]
    return Batch(
        sample_ids=tuple(str(row) for row in range(len(mask))),
        starts=torch.zeros_like(mask),
        ends=mask.sum(1, keepdim=True) * mask,
        input_ids=tensors["input_ids"],
        loss_mask=tensors["loss_mask"].bool(),
        hidden=tensors["target_hidden_states"].float(),
        last_hidden=tensors["target_last_hidden_states"].float(),
    )


def objective_of(case: Path) -> Objective:
    """Return the objective that a case's expected.json tells."""
    told = golden.expected(case)
    loss, model = told.get("loss_args") or {}, told["model_args"]
    if "ttt_length" in model:
        return Objective(ttt_length=model["ttt_length"], step_decay=model["step_loss_decay"], mask_alignment="deepspec")
    return Objective(
        cross_entropy=loss["ce_loss_alpha"],
        total_variation=loss["l1_loss_alpha"],
        confidence=loss["confidence_head_alpha"],
        slot_decay=max(loss["loss_decay_gamma"] or 0.0, 0.0),
    )


def block_setting(case: Path) -> tuple[BlockAlgorithm, BlockDraft, Batch, BlockSupervision]:
    """Return algorithm, draft, batch and supervision of a case of blocks."""
    tensors = golden.tensors(case, "batch.safetensors")
    batch, model = read_batch(tensors), block_draft(load_draft(case / "draft")).train()
    algorithm = of_blocks(model.config.algorithm)
    supervision = algorithm.supervise_blocks(
        model.config, objective_of(case), batch, tensors["anchor_positions"], tensors["block_keep_mask"]
    )
    return algorithm, model, batch, supervision


def eagle_setting(case: Path) -> tuple[Eagle3, EagleDraft, Batch, EagleSupervision]:
    """Return algorithm, draft, batch and supervision of a case of eagle3."""
    batch = read_batch(golden.tensors(case, "batch.safetensors"))
    model = step_draft(load_draft(case / "draft")).train()
    supervision = Eagle3().supervise(model.config, objective_of(case), batch, keys=[0] * len(batch.sample_ids))
    return Eagle3(), model, batch, supervision


def check_gradients(
    case: Path, algorithm: Algorithm, model: BlockDraft | EagleDraft, batch: Batch, supervision: Any
) -> LossResult:
    """Compare the gradient of every parameter by norm, by sum of absolute values, and in full where it is given."""
    told = golden.expected(case)
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    result.loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.trainable()}
    assert not told["grad_norms"].keys() - grads.keys()
    assert all(not grad.any() for name, grad in grads.items() if name not in told["grad_norms"])  # no loss reaches it
    for name, norm in told["grad_norms"].items():
        assert grads[name].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-7), name
        assert grads[name].abs().sum().item() == pytest.approx(told["grad_abs_sums"][name], rel=GRADIENT, abs=1e-6), (
            name
        )
    total = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    assert total == pytest.approx(told["grad_norm_total"], rel=GRADIENT)
    if (case / "grads.safetensors").exists():
        for name, wanted in golden.tensors(case, "grads.safetensors").items():
            torch.testing.assert_close(grads[name], wanted, atol=1e-5, rtol=1e-3)
    return result
