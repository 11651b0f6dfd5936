"""Training a block draft takes memory by the length of a sample, not by its square."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepspec.algorithms import ALGORITHMS
from deepspec.formats.recipe import AlgorithmName, Objective
from deepspec.records.batch import Record, collate
from tests.given.drafts import pairs

ANCHORS = 32
SHORT, LONG = 1024, 4096
DRAFTS: dict[str, dict[str, Any]] = {
    "dspark": {"markov_rank": 4, "confidence_head": True},
    "dflash": {},
    "dflash2": pairs.DFLASH2,
    "xpress": pairs.XPRESS,
    "dflash-near": {"window": 64, "window_layers": frozenset({0})},
}


class Largest(TorchDispatchMode):
    """Remembers the most elements that any result of any operation has, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.most = max([self.most, *sizes])
        return out


def largest(algorithm: AlgorithmName, length: int, **traits: Any) -> int:
    """Return the elements of the largest tensor of a step on one sample."""
    draft = pairs.draft(pairs.target(), algorithm, **traits).train()
    draft.layers.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    record = Record(
        sample_id="a",
        input_ids=torch.randint(2, 46, (length,), generator=generator),
        loss_mask=torch.ones(length, dtype=torch.bool),
        hidden=torch.randn(length, 64, generator=generator),
        last_hidden=torch.randn(length, 32, generator=generator),
    )
    batch, known = collate([record]), ALGORITHMS[algorithm]
    seen = Largest()
    with seen:
        supervision = known.supervise(draft.config, Objective(num_anchors=ANCHORS), batch, [7])
        known.loss(draft, batch, supervision, supervision.denominators).loss.backward()
    return seen.most


@pytest.mark.parametrize("name", DRAFTS)
def test_a_block_draft_holds_no_pair_of_positions(name: str) -> None:
    algorithm: Any = name.split("-")[0]
    short, long = (largest(algorithm, length, **DRAFTS[name]) for length in (SHORT, LONG))
    slots = ANCHORS * 4
    assert long <= slots * (LONG + slots)  # the mask: slots of all blocks, by positions and slots
    assert long <= LONG / SHORT * short
    assert long < LONG**2 / 16


def test_the_measure_sees_a_square_where_there_is_one() -> None:
    """On a CPU Eagle3's mask is one: of every position by every position."""
    assert largest("eagle3", SHORT) >= SHORT**2
