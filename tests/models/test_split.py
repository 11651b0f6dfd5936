"""Attention over a range of the context and over own entries, merged, is attention over both."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import scaled_dot_product_attention

from deepspec.algorithms.masks import Blocks, blocks_mask, steps_mask
from deepspec.attention.attention import KeyValue, attend
from deepspec.attention.split import TILE, Ranges, dense_attention, merged
from tests.given.some import some

HEADS, GROUPS, SIZE = 4, 2, 8


def inputs(rows: int, queries: int, keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, HEADS, queries, SIZE), (rows, GROUPS, keys, SIZE), (rows, GROUPS, keys, SIZE))
    query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    return query, key, value


def test_two_halves_merge_to_the_whole_by_hand() -> None:
    one, two = torch.tensor([[[[2.0]]]]), torch.tensor([[[[6.0]]]])
    normalisers = torch.log(torch.tensor([[[3.0]]])), torch.log(torch.tensor([[[1.0]]]))
    assert merged([(one, normalisers[0]), (two, normalisers[1])]).item() == pytest.approx((3 * 2 + 1 * 6) / 4)


def test_dense_attention_is_that_of_torch_and_reads_nothing_where_nothing_is_seen() -> None:
    query, key, value = inputs(2, 5, 7)
    seen = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[0, 0, 3] = False
    read, lse = dense_attention(query, key, value, seen, 0.3)
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(read, wanted)
    assert lse[0, :, 3].eq(-torch.inf).all()
    assert read[0, :, 3].eq(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_split_read_and_learn_as_dense_ones(seed: int) -> None:
    """Two rows, one of them with two samples; an anchor at its sample's first token; dummy blocks."""
    starts = torch.tensor([[0, 0, 0, 0], [0, 5, 5, 0]])
    anchors = torch.tensor([[0, 2, 9, 11], [3, 5, 8, 0]])
    keep = torch.tensor([[True, True, True, True], [True, True, True, False]])
    held_to(
        *inputs(2, 12, 12 + 12, seed), blocks_mask, (Blocks(starts, anchors, keep, 3), 12), keep.repeat_interleave(3, 1)
    )


@pytest.mark.parametrize("step", [0, 1, 4])
def test_steps_that_split_read_and_learn_as_dense_ones(step: int) -> None:
    starts = torch.tensor([[0] * 8, [0] * 3 + [3] * 5])
    ends = torch.tensor([[8] * 8, [3] * 3 + [8] * 5])
    inside = torch.arange(8) < ends - step
    held_to(*inputs(2, 8, 8 * (step + 1)), steps_mask, (starts, ends, step), inside)


def held_to(
    query: Tensor, key: Tensor, value: Tensor, mask: Callable[..., Any], arguments: tuple[Any, ...], real: Tensor
) -> None:
    """Hold outputs and gradients of the split form to those of the dense one, where a query is real."""
    found = []
    for form in ("dense", "split"):
        read = attend(query, KeyValue(key, value), mask(*arguments, form), 0.5)
        kept = read.transpose(1, 2)[real]
        found.append((kept, *torch.autograd.grad((kept * kept.detach().cos()).sum(), (query, key, value))))
    for dense_one, split_one in zip(*found, strict=True):
        assert split_one.isfinite().all()
        torch.testing.assert_close(split_one, dense_one, atol=1e-6, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_are_those_that_the_dense_mask_gives(data: st.DataObject) -> None:
    queries, context = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    edge = st.integers(0, context)
    pairs = st.lists(st.tuples(edge, edge), min_size=queries, max_size=queries)
    starts, stops = torch.tensor(data.draw(pairs)).unbind(1)
    if data.draw(st.booleans()):  # as training has them: they grow
        starts, stops = starts.sort().values, stops.sort().values
    ranges = Ranges(starts[None], stops[None], context)
    made = ranges.blocks()
    seen = ranges.dense()[0, 0]
    wanted = create_block_mask(
        lambda b, h, q, k: (k >= starts[q]) & (k < stops[q]), 1, None, queries, context, device="cpu", BLOCK_SIZE=TILE
    )
    rows, columns = wanted.to_dense().shape[2:]
    assert torch.equal(made.to_dense()[:, :, :rows, :columns], wanted.to_dense())
    assert made.to_dense().sum() == wanted.to_dense().sum()  # nothing is in the tiles beyond
    assert tiles(some(made.full_kv_num_blocks), some(made.full_kv_indices), seen) <= whole_tiles(seen)
    assert torch.equal(some(made.full_kv_num_blocks)[:, :, :rows], some(wanted.full_kv_num_blocks))
    assert not some(made.full_kv_num_blocks)[:, :, rows:].any()


def tiles(counts: Tensor, indices: Tensor, seen: Tensor) -> set[tuple[int, int]]:
    return {(n, int(m)) for n in range(counts.shape[2]) for m in indices[0, 0, n, : int(counts[0, 0, n])]}


def whole_tiles(seen: Tensor) -> set[tuple[int, int]]:
    rows = range(0, seen.shape[0], TILE)
    columns = range(0, seen.shape[1], TILE)
    return {
        (n, m)
        for n, row in enumerate(rows)
        for m, column in enumerate(columns)
        if seen[row : row + TILE, column : column + TILE].all()
    }
