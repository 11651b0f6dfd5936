"""Optimizer steps against golden ones: losses, gradient norms, learning rates, final weights.

The optimizer is made here of what the README of the golden numbers says: this holds the draft's losses and gradients
along a whole trajectory. The learning rates are the product's, times an artefact that the golden numbers carry and the
product does not: under torch 2.13 the cosine after a warm-up starts above the peak.
"""

import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.checkpoint.draft import load_draft
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft
from deepspec.optimizers.schedule import learning_rate
from deepspec.records.batch import Batch, Record, collate, supervises
from tests.given import golden
from tests.given.drafts.kinds import block_draft, of_blocks
from tests.given.some import some

ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def read_sample(folder: Path, told: dict[str, int], index: int) -> Record:
    """Return a sample of the public cache form as a record."""
    row = struct.unpack_from("<QIIQQQQQ", (folder / "samples.idx").read_bytes(), index * 56)
    _, shard, length, ids_at, _, mask_at, hidden_at, last_at = row
    data = bytearray((folder / f"shard-{shard:05d}.bin").read_bytes())
    size, captured = told["hidden_size"], told["captured"]

    def values(dtype: torch.dtype, offset: int, count: int) -> Tensor:
        return torch.frombuffer(data, dtype=dtype, offset=offset, count=count).clone()

    loss_mask = values(torch.uint8, mask_at, length).bool()
    return Record(
        sample_id=str(index),
        input_ids=values(torch.int32, ids_at, length).long(),
        loss_mask=loss_mask,
        hidden=values(torch.bfloat16, hidden_at, length * size * captured).view(length, -1).float(),
        last_hidden=values(torch.bfloat16, last_at, length * size).view(length, -1).float()[supervises(loss_mask)],
    )


@pytest.mark.parametrize("folder", golden.cases(".", "draft_init/config.json", "anchors.safetensors"))
def test_every_step_of_training(folder: Path) -> None:
    told, drawn = golden.expected(folder), golden.tensors(folder, "anchors.safetensors")
    model = block_draft(load_draft(folder / "draft_init")).train()
    sizes = {"hidden_size": model.config.block.hidden_size, "captured": model.config.num_captured}
    masters = {name: parameter.detach().float().clone() for name, parameter in model.trainable()}
    optimizer = torch.optim.AdamW(masters.values(), lr=told["lr"], **ADAM)
    micro = 0
    for step in told["steps"]:
        for _ in range(told["acc_steps"]):
            batch = collate([read_sample(golden.path("cache", "cache_dir"), sizes, told["order"][micro])])
            loss = loss_of(model, told, batch, drawn[f"{micro}.anchors"], drawn[f"{micro}.keep"])
            assert loss.item() == pytest.approx(told["micro"][micro]["loss"], abs=1e-4), micro
            (loss / told["acc_steps"]).backward()
            micro += 1
        rate = rate_of(step["step"], told, overshoot=True)
        assert rate == pytest.approx(step["lr"], rel=1e-6)
        norm = update(model, masters, optimizer, rate, told["max_grad_norm"])
        assert norm == pytest.approx(step["grad_norm"], rel=1e-3), step["step"]
    first = golden.tensors(folder, "draft_init/model.safetensors")
    for name, wanted in golden.tensors(folder, "draft_final/model.safetensors").items():
        apart = (model.state_dict()[name].float() - wanted.float()).norm()
        moved = (wanted.float() - first[name].float()).norm()
        assert apart <= 1e-2 * moved, name  # where a gradient is near 0, AdamW makes a step of its rounding


def rate_of(step: int, told: dict[str, Any], *, overshoot: bool) -> float:
    """Return the product's learning rate; with `overshoot`, scaled after the warm-up as torch 2.13 does."""
    total, warmup = told["total_steps"], int(told["warmup_ratio"] * told["total_steps"])
    rate = learning_rate(step, total, told["lr"], told["warmup_ratio"])
    scaled = overshoot and step >= warmup
    return rate * 2 / (1 + math.cos(math.pi / (total - warmup))) if scaled else rate


def loss_of(model: BlockDraft, told: dict[str, Any], batch: Batch, anchors: Tensor, keep: Tensor) -> Tensor:
    loss = told["loss_args"]
    objective = Objective(
        cross_entropy=loss["ce_loss_alpha"],
        total_variation=loss["l1_loss_alpha"],
        confidence=loss["confidence_head_alpha"],
        slot_decay=loss["loss_decay_gamma"],
    )
    algorithm = of_blocks(model.config.algorithm)
    supervision = algorithm.supervise_blocks(model.config, objective, batch, anchors, keep)
    return algorithm.loss(model, batch, supervision, supervision.denominators).loss


def update(
    model: BlockDraft,
    masters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    largest: float,
) -> float:
    """Clip, step in fp32, and give the draft the masters' values."""
    norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in model.trainable()], largest).item()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    for name, parameter in model.trainable():
        masters[name].grad = some(parameter.grad).float()
        parameter.grad = None
    optimizer.step()
    with torch.no_grad():
        for name, parameter in model.trainable():
            parameter.copy_(masters[name])
    return norm
