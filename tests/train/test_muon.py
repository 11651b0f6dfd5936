"""Muon beside AdamW: layout, clipping, skipping, exact resume, any number of ranks."""

import pytest
import torch
from torch import nn

from deepspec.errors import CheckpointError
from deepspec.optimizers.muon import MasterMuon, lay_out, takes
from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.steps.ranks import Ranks
from deepspec.train.spec import TrainSpec
from tests.given.drafts.toy import ToyModel
from tests.train.test_optimizer import backward

SPEC = TrainSpec(optimizer="muon", learning_rate=0.01, weight_decay=0.1, clip=0.5)


def test_matrices_are_muons_but_tables_of_a_vocabulary() -> None:
    matrix = torch.zeros(3, 2)
    assert takes("layers.0.mlp.up_proj.weight", matrix)
    tables = ("embed_tokens.weight", "candidate_selector.successor_codebook", "markov_head.markov_w2.weight")
    assert not any(takes(name, matrix) for name in tables)
    assert not takes("norm.weight", torch.zeros(3))
    assert not takes("confidence_head.proj.weight", torch.zeros(1, 3))


def test_every_owner_has_whole_matrices_the_largest_where_least_lies() -> None:
    shapes = {"a": torch.Size([4, 4]), "b": torch.Size([2, 5]), "c": torch.Size([3, 3]), "d": torch.Size([2, 2])}
    places, share = lay_out(shapes, 2)
    assert {(place.name, place.owner, place.offset) for place in places} == {
        ("a", 0, 0), ("d", 0, 16), ("b", 1, 20), ("c", 1, 30),
    }  # fmt: skip
    assert share == 20


def test_with_one_rank_in_fp32_it_is_torchs_muon_and_adamw_clipped_together() -> None:
    ours, reference = ToyModel(), ToyModel()
    optimizer = MasterMuon(ours, SPEC, torch.float32, Ranks("cpu"))
    named = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    matrices = [p for name, p in named.items() if takes(name, p)]
    others = [p for name, p in named.items() if not takes(name, p)]
    assert matrices
    assert others
    steps: tuple[torch.optim.Optimizer, ...] = (
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.01, weight_decay=0.1),
    )
    for _ in range(4):
        backward(ours)
        norm = optimizer.sum_gradients()
        optimizer.step(0.01, norm)
        reference.zero_grad()
        backward(reference)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_([*matrices, *others], 0.5))
        for step in steps:
            step.step()
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.data, theirs.data, atol=1e-6, rtol=1e-4)


def test_a_skipped_step_moves_nothing() -> None:
    model = ToyModel()
    optimizer = MasterMuon(model, SPEC, torch.bfloat16, Ranks("cpu"))
    backward(model)
    optimizer.step(0.01, optimizer.sum_gradients())
    before = {name: value.clone() for name, value in optimizer.state().items()}
    backward(model, scale=float("nan"))
    optimizer.step(0.01, optimizer.sum_gradients(), torch.ones(()))
    after = optimizer.state()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    backward(model)
    optimizer.step(0.01, optimizer.sum_gradients(), torch.zeros(()))
    assert not torch.equal(before["master.first.weight"], optimizer.state()["master.first.weight"])


def test_a_saved_state_continues_exactly() -> None:
    model, other = ToyModel(), ToyModel()
    optimizer = MasterMuon(model, SPEC, torch.bfloat16, Ranks("cpu"))
    for _ in range(3):
        backward(model)
        optimizer.step(0.01, optimizer.sum_gradients())
    resumed = MasterMuon(other, SPEC, torch.bfloat16, Ranks("cpu"))
    resumed.load({name: value.clone() for name, value in optimizer.state().items()})
    for each, its_model in ((optimizer, model), (resumed, other)):
        backward(its_model)
        each.step(0.01, each.sum_gradients())
    for name, value in optimizer.state().items():
        assert torch.equal(value, resumed.state()[name]), name
    assert torch.equal(model.second.weight, other.second.weight)


@pytest.mark.parametrize("made", [MasterAdamW, MasterMuon])
def test_the_bytes_of_a_state_are_known_before_it_is_taken(made: type[MasterAdamW | MasterMuon]) -> None:
    optimizer = made(ToyModel(), SPEC, torch.bfloat16, Ranks("cpu"))
    assert optimizer.state_bytes == sum(value.nbytes for value in optimizer.state().values())


def test_a_state_of_adamw_is_refused() -> None:
    model = ToyModel()
    optimizer = MasterMuon(model, SPEC, torch.float32, Ranks("cpu"))
    state = {name: value for name, value in optimizer.state().items() if not name.startswith("momentum.")}
    with pytest.raises(CheckpointError, match=r"momentum\.\S+ is missing; .*another draft shape or optimizer"):
        optimizer.load(state)
