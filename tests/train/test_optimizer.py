import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from deepspec.errors import CheckpointError
from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.steps.ranks import Ranks
from deepspec.train.spec import TrainSpec
from tests.given.drafts.toy import CAPTURED, ToyModel


def backward(model: ToyModel, scale: float = 1.0) -> None:
    x = torch.linspace(-1, 1, 3 * CAPTURED).view(3, CAPTURED).to(model.first.weight.dtype)
    (model(x).float().pow(2).sum() * scale).backward()


def test_in_fp32_it_is_adamw_with_clipping() -> None:
    spec = TrainSpec(learning_rate=0.01, weight_decay=0.1, clip=0.5, betas=(0.8, 0.9))
    ours, reference = ToyModel(), ToyModel()
    optimizer = MasterAdamW(ours, spec, torch.float32, Ranks("cpu"))
    trainable = [parameter for parameter in reference.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trainable, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-8)
    for _ in range(5):
        backward(ours)
        norm = optimizer.sum_gradients()
        optimizer.step(0.01, norm)
        adam.zero_grad()
        backward(reference)
        wanted = nn.utils.clip_grad_norm_(trainable, 0.5)
        adam.step()
        torch.testing.assert_close(norm, wanted)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.data, theirs.data)


def test_gradients_add_up_over_backwards_and_can_be_forgotten() -> None:
    model = ToyModel()
    optimizer = MasterAdamW(model, TrainSpec(), torch.float32, Ranks("cpu"))
    backward(model)
    once = optimizer.gradient.clone()
    backward(model)
    torch.testing.assert_close(optimizer.gradient, 2 * once)
    optimizer.forget()
    assert optimizer.sum_gradients() == 0


def test_under_bf16_small_steps_are_not_lost() -> None:
    """A bf16 weight near 1 cannot move by 1e-4; its fp32 master does, and after enough steps so does the weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    optimizer = MasterAdamW(model, TrainSpec(learning_rate=1e-4), torch.bfloat16, Ranks("cpu"))
    for step in range(1, 41):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(1e-4, optimizer.sum_gradients())
        assert optimizer.master.item() == pytest.approx(1 - step * 1e-4, abs=1e-6)  # Adam: one rate a step
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == 0.99609375  # the bf16 number next to 0.996


def test_frozen_weights_are_cast_but_never_stepped() -> None:
    model = ToyModel()
    optimizer = MasterAdamW(model, TrainSpec(), torch.bfloat16, Ranks("cpu"))
    assert optimizer.size == CAPTURED * 8 + 8 + 8 * 4
    assert model.frozen.dtype == torch.bfloat16
    assert "master.frozen" not in optimizer.state()


def test_a_saved_state_continues_exactly() -> None:
    model, other = ToyModel(), ToyModel()
    optimizer = MasterAdamW(model, TrainSpec(), torch.bfloat16, Ranks("cpu"))
    for _ in range(3):
        backward(model)
        optimizer.step(0.01, optimizer.sum_gradients())
    resumed = MasterAdamW(other, TrainSpec(), torch.bfloat16, Ranks("cpu"))
    resumed.load({name: value.clone() for name, value in optimizer.state().items()})
    for each, its_model in ((optimizer, model), (resumed, other)):
        backward(its_model)
        each.step(0.01, each.sum_gradients())
    assert torch.equal(optimizer.master, resumed.master)
    assert torch.equal(model.second.weight, other.second.weight)


def test_a_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    optimizer = MasterAdamW(ToyModel(), TrainSpec(), torch.float32, Ranks("cpu"))
    before = optimizer.master.clone()
    state = {name: value.clone() + 1 for name, value in optimizer.state().items()}
    state["exp_avg_sq.second.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"exp_avg_sq\.second\.weight has shape \(3, 3\); wanted \(4, 8\)"):
        optimizer.load(state)
    assert torch.equal(optimizer.master, before)


def test_bf16_steps_equal_the_golden_trajectory() -> None:
    """bf16 parameters with fp32 masters, as the public checkpoints were trained."""
    golden = Path(os.environ.get("DEEPSPEC_GOLDEN", "")) / "misc" / "expected.json"
    if not golden.is_file():
        pytest.skip("golden numbers are not here: set DEEPSPEC_GOLDEN")
    told = json.loads(golden.read_text())["bf16_optimizer"]
    model = nn.Linear(4, 3)
    model.load_state_dict({name: torch.tensor(value) for name, value in told["init"].items()})
    optimizer = MasterAdamW(model, TrainSpec(clip=told["max_norm"]), torch.bfloat16, Ranks("cpu"))
    rows = told["trajectory"]
    rates = [told["lr"] / 2, *(row["lr"] for row in rows)]  # a row tells the rate of the step after it
    for x, rate, row in zip(told["inputs"], rates, rows, strict=False):
        loss = model(torch.tensor(x, dtype=torch.bfloat16)).float().pow(2).mean()
        loss.backward()
        norm = optimizer.sum_gradients()
        optimizer.step(rate, norm)
        assert loss.item() == pytest.approx(row["loss"], rel=4e-3)
        assert norm.item() == pytest.approx(row["grad_norm"], rel=4e-3)  # theirs is summed in bf16, and so clips
        master = optimizer.state()["master.weight"]
        torch.testing.assert_close(master, torch.tensor(row["master_weight"]), atol=2e-4, rtol=0)
        torch.testing.assert_close(model.weight.float(), torch.tensor(row["weight"]), atol=2e-4, rtol=2**-8)
