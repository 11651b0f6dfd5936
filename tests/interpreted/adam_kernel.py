"""The kernel that steps weights against torch's own AdamW in float64, and what it may not touch.

TRITON_INTERPRET=1 python -m pytest tests/interpreted/adam_kernel.py
python -m pytest tests/interpreted/adam_kernel.py     # compiled, where there is a GPU
"""

import os

import pytest
import torch
from torch import nn

from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.steps.ranks import Ranks
from deepspec.train.spec import TrainSpec
from tests.given.drafts.toy import CAPTURED, ToyModel

DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="nothing runs a kernel here: there is no GPU, and TRITON_INTERPRET=1 was not asked for",
)
INTERPRETED = DEVICE == "cpu"
"""Where what the compiled kernel rounds to bf16 is cut."""
SPEC = TrainSpec(learning_rate=0.01, weight_decay=0.1, clip=0.5, betas=(0.8, 0.99))


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.optimizers.optimizer.kernel_of", lambda device: "triton")
    monkeypatch.setattr("deepspec.optimizers.triton_adam.TILE", 16)


def trained(dtype: torch.dtype = torch.float32) -> tuple[ToyModel, MasterAdamW]:
    model = ToyModel().to(DEVICE)
    return model, MasterAdamW(model, SPEC, dtype, Ranks(DEVICE))


def backward(model: ToyModel, scale: float = 1.0) -> None:
    x = torch.linspace(-1, 1, 3 * CAPTURED).view(3, CAPTURED).to(model.first.weight)
    (model(x).float().pow(2).sum() * scale).backward()


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_adamw_with_clipping(passes: int) -> None:
    """One pass leaves its gradients where they are; of two the sums lie in the flat buffer."""
    ours, optimizer = trained()
    reference = ToyModel().to(DEVICE).double()
    adam = torch.optim.AdamW(parameters_of(reference), lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-8)
    for rate in (0.01, 0.02, 0.005, 0.01, 0.01):
        adam.zero_grad()
        for each in range(passes):
            backward(ours, 1.0 + each)
            backward(reference, 1.0 + each)
        norm = optimizer.sum_gradients()
        optimizer.step(rate, norm)
        wanted = nn.utils.clip_grad_norm_(parameters_of(reference), 0.5)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        assert norm.item() == pytest.approx(wanted.item(), rel=1e-5)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.data.double(), theirs.data, rtol=2e-6, atol=1e-7)


def test_one_pass_needs_no_buffer_of_sums_and_two_do() -> None:
    model, optimizer = trained(torch.bfloat16)
    assert optimizer.unmade_bytes == (4 + 2) * optimizer.size
    for _ in range(3):
        backward(model)
        optimizer.step(0.01, optimizer.sum_gradients())
    assert optimizer.unmade_bytes == (4 + 2) * optimizer.size
    backward(model)
    backward(model)
    assert optimizer.unmade_bytes == 0


def test_weights_of_a_narrow_model_are_the_rounded_masters() -> None:
    model, optimizer = trained(torch.bfloat16)
    before = optimizer.master.clone()
    for _ in range(4):
        backward(model)
        optimizer.step(0.01, optimizer.sum_gradients())
    assert not torch.equal(optimizer.master, before)
    narrow = torch.cat([parameter.flatten() for parameter in parameters_of(model)])
    if INTERPRETED:
        torch.testing.assert_close(narrow.float(), optimizer.master.detach(), rtol=2**-7, atol=0)
    else:
        assert torch.equal(narrow, optimizer.master.to(torch.bfloat16))


def test_a_step_that_is_skipped_moves_nothing_not_even_the_count() -> None:
    model, optimizer = trained(torch.bfloat16)
    backward(model)
    optimizer.step(0.01, optimizer.sum_gradients(), torch.zeros((), device=DEVICE))
    before = {name: value.clone() for name, value in optimizer.state().items()}
    backward(model, float("nan"))
    norm = optimizer.sum_gradients()
    assert not torch.isfinite(norm)
    optimizer.step(0.01, norm, torch.ones((), device=DEVICE))
    assert {name: value.tolist() for name, value in optimizer.state().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_parameter_without_a_gradient_goes_on_with_its_momentum() -> None:
    model, optimizer = trained()
    reference = ToyModel().to(DEVICE)
    twin = torch.optim.AdamW(parameters_of(reference), lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-8)
    for alone in (False, True):
        twin.zero_grad()
        for each in (model, reference):
            if alone:
                each.second.weight.sum().mul(1e-3).backward()
            else:
                backward(each)
        for parameter in parameters_of(reference):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.step(0.01, optimizer.sum_gradients())
        nn.utils.clip_grad_norm_(parameters_of(reference), 0.5)
        twin.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.data, theirs.data, rtol=1e-5, atol=1e-7)


def test_a_saved_state_goes_on_to_the_bit() -> None:
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    (model, optimizer), (other, resumed) = trained(dtype), trained(dtype)
    for _ in range(3):
        backward(model)
        optimizer.step(0.01, optimizer.sum_gradients())
    resumed.load({name: value.clone() for name, value in optimizer.state().items()})
    for each, its_model in ((optimizer, model), (resumed, other)):
        backward(its_model)
        each.step(0.01, each.sum_gradients())
    assert torch.equal(optimizer.master, resumed.master)
