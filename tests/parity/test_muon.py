"""Muon against golden numbers of speculators: which parameters it takes, every step of weights and momentum."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepspec.optimizers.muon import MasterMuon
from deepspec.steps.ranks import Ranks
from deepspec.train.spec import TrainSpec
from tests.given import golden2

CASES = golden2.cases("muon", wanted=("batch.safetensors", "expected.json", "expected.safetensors"))
CLOSE = {"momentum": 1e-6, "adamw": 1e-6, "muon": 2e-3}
"""Largest absolute difference; bf16 products of other kernels may round otherwise."""


def model_of(batch: Mapping[str, Tensor]) -> nn.Module:
    """Return a module whose parameters have the names and values of a case."""
    model = nn.Module()
    for name, value in batch.items():
        if name.startswith("param0."):
            *path, last = name.removeprefix("param0.").split(".")
            part: nn.Module = model
            for word in path:
                if word not in part._modules:
                    part.add_module(word, nn.Module())
                part = part.get_submodule(word)
            part.register_parameter(last, nn.Parameter(value.clone()))
    return model


@pytest.mark.parametrize("case", CASES)
def test_every_step(case: Path) -> None:
    told, batch = golden2.expected(case), golden2.tensors(case, "batch.safetensors")
    wanted, config = golden2.tensors(case, "expected.safetensors"), golden2.expected(case)["config"]
    model = model_of(batch)
    spec = TrainSpec(
        optimizer="muon", learning_rate=config["lr"], muon_learning_rate=config["muon_lr"], clip=1e9,
        muon_momentum=config["muon_momentum"], muon_weight_decay=config["muon_weight_decay"],
        muon_scale=config["muon_adjust_lr_fn"], weight_decay=config["weight_decay"],
    )  # fmt: skip
    optimizer = MasterMuon(model, spec, torch.float32, Ranks("cpu"))
    state = optimizer.state()
    assert {name.removeprefix("momentum.") for name in state if name.startswith("momentum.")} == set(
        told["muon_params"]
    )
    for step in range(1, told["steps"] + 1):
        given = {
            name: batch[f"grad{step}.{name}"] for name, _ in model.named_parameters() if f"grad{step}.{name}" in batch
        }
        sum((dict(model.named_parameters())[name] * grad).sum() for name, grad in given.items()).backward()
        optimizer.step(config["lr"], optimizer.sum_gradients())
        state = optimizer.state()
        for name in told["muon_params"]:
            torch.testing.assert_close(
                state[f"momentum.{name}"], wanted[f"momentum{step}.{name}"], atol=CLOSE["momentum"], rtol=0
            )
            torch.testing.assert_close(
                state[f"master.{name}"], wanted[f"param{step}.{name}"], atol=CLOSE["muon"], rtol=0
            )
        for name in told["adamw_params"]:
            torch.testing.assert_close(
                state[f"master.{name}"], wanted[f"param{step}.{name}"], atol=CLOSE["adamw"], rtol=0
            )
        named = dict(model.named_parameters())
        assert all(torch.equal(named[name], state[f"master.{name}"]) for name in named)
