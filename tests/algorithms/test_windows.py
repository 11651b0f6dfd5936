"""What training queries see through a window, by hand, and held to masks over places."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from deepspec.algorithms.base import mean_pairs
from deepspec.algorithms.blocks import BlockAlgorithm
from deepspec.algorithms.masks import Blocks, blocks_mask, chains_mask, steps_mask
from deepspec.attention.attention import KeyValue, LayerMasks, attend, mask_of, masks_of
from deepspec.formats.recipe import Objective
from deepspec.records.batch import Record, collate
from tests.given.drafts import pairs
from tests.given.drafts.masks import dense

SAMPLE = torch.zeros(1, 6, dtype=torch.int64)
ENDS = torch.full((1, 6), 6)


def rows(mask: object) -> list[str]:
    """Return the one row of a dense mask as text, a line for each query."""
    return ["".join("#" if seen else "." for seen in query) for query in dense(mask)[0, 0].tolist()]


def test_a_slot_sees_its_window_and_the_whole_of_its_block() -> None:
    """An anchor at place 4 of a context of 6; slots at 4, 5, 6, with windows of 3: through places 2, 3, 4."""
    blocks = Blocks(torch.tensor([[0]]), torch.tensor([[4]]), torch.tensor([[True]]), 3)
    assert rows(blocks_mask(blocks, 6, window=3)) == ["..##..###", "...#..###", "......###"]
    assert rows(blocks_mask(blocks, 6)) == ["####..###"] * 3


def test_a_window_does_not_reach_into_the_sample_before() -> None:
    blocks = Blocks(torch.tensor([[3]]), torch.tensor([[4]]), torch.tensor([[True]]), 2)
    assert rows(blocks_mask(blocks, 6, window=4)) == ["...#..##"] * 2


def test_a_step_sees_its_window_counted_from_where_it_stands() -> None:
    """At step 1 the query of position i stands at i + 1: of a window of 3 it takes one place itself."""
    assert rows(steps_mask(SAMPLE, ENDS, 0, window=3))[3:] == [".###..", "..###.", "...###"]
    assert rows(steps_mask(SAMPLE, ENDS, 1, window=3))[3:5] == ["..##.....#..", "...##.....#."]


def test_a_mask_token_sees_its_window_counted_from_where_it_stands() -> None:
    """Two mask tokens behind position 3, at 4 and 5."""
    chain = chains_mask(SAMPLE, ENDS, torch.tensor([[3, 3]]), torch.tensor([[0, 0]]), window=3)
    assert rows(chain)[5:] == ["...###..", "..##..#.", "...#..##"]


@pytest.mark.parametrize("form", ["split"])
def test_split_windows_read_and_learn_as_dense_ones(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = Blocks(torch.tensor([[0, 0, 5]]), torch.tensor([[2, 9, 11]]), torch.tensor([[True] * 3]), 3)
    kinds = {
        "blocks": (9, 12 + 9, partial(blocks_mask, blocks, 12)),
        "steps": (6, 18, partial(steps_mask, SAMPLE, ENDS, 2)),
        "chains": (8, 8, partial(chains_mask, SAMPLE, ENDS, torch.tensor([[3, 3]]), torch.tensor([[0, 0]]))),
    }
    for name, (queries, keys, make) in kinds.items():
        query, key, value = (
            torch.randn(1, 2, size, 4, generator=generator, requires_grad=True) for size in (queries, keys, keys)
        )
        found = []
        for each in ("dense", form):
            read = attend(query, KeyValue(key, value), make(each, 4), 0.5)[:, :, : 4 if name == "steps" else None]
            found.append((read, *torch.autograd.grad(read.square().sum(), (query, key, value))))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_only_some_layers_with_a_window_have_masks_of_two_kinds() -> None:
    def mask(window: int | None) -> Tensor:
        return torch.tensor(window or 0)

    two = masks_of((None, 4, None), mask)
    assert isinstance(two, LayerMasks)
    assert [int(dense(mask_of(two, window))) for window in (None, 4)] == [0, 4]
    assert int(dense(masks_of((4, 4), mask))) == 4


def test_pairs_are_a_mean_over_layers() -> None:
    """Queries at places 1, 2, 5 and 9: in full 17, through a window of 4: 1 + 2 + 4 + 4 = 11."""
    seen = torch.tensor([1, 2, 5, 9])
    assert [mean_pairs(seen, windows) for windows in ((None,), (4,), (None, 4))] == [17, 11, 14]


def test_a_blocks_own_entries_count_as_pairs_that_no_window_hides() -> None:
    config = pairs.draft(pairs.target(), "dflash").config
    ids, mask = torch.arange(2, 32), torch.ones(30, dtype=torch.bool)
    batch = collate(
        [
            Record(
                sample_id="a",
                input_ids=ids,
                loss_mask=mask,
                hidden=torch.zeros(30, 64),
                last_hidden=torch.zeros(30, 32),
            )
        ]
    )
    anchors, keep = torch.tensor([[10]]), torch.tensor([[True]])
    algorithm = BlockAlgorithm(cross_entropy=1.0, total_variation=0.0)
    near = replace(config, window=6, window_layers=frozenset({0, 1}))
    seen = [algorithm.supervise_blocks(each, Objective(), batch, anchors, keep).work.pairs for each in (config, near)]
    assert seen == [4 * 10 + 4 * 4, (5 + 4 + 3 + 2) + 4 * 4]
