"""Ragged rows: what is written where, and what a position sees."""

import torch

from deepspec.kv.rows import RowCache

CPU = torch.device("cpu")


def states(*rows: list[float]) -> torch.Tensor:
    """Return `(B, 1, Q, 1)` states of one head of size 1."""
    return torch.tensor(rows)[:, None, :, None]


def ragged() -> RowCache:
    """Return two rows of lengths 1 and 3."""
    cache = RowCache(2, 8, CPU)
    cache.open(3)
    cache.update(states([1, 2, 3], [4, 5, 6]), states([1, 2, 3], [4, 5, 6]), 0)
    cache.advance(torch.tensor([1, 3]))
    return cache


def test_new_entries_go_behind_each_rows_own_length() -> None:
    cache = ragged()
    assert cache.open(2).tolist() == [[1, 2], [3, 4]]
    keys, _ = cache.update(states([7, 8], [9, 10]), states([7, 8], [9, 10]), 0)
    assert keys[:, 0, :, 0].tolist() == [[1, 7, 8, 0, 0], [4, 5, 6, 9, 10]]


def test_a_position_sees_itself_and_what_is_before_it() -> None:
    cache = ragged()
    cache.open(2)
    seen = cache.causal_mask()[:, 0].int().tolist()
    assert seen == [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]
    windowed = cache.causal_mask(window=2)[:, 0].int().tolist()
    assert windowed == [[[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]]


def test_a_block_sees_its_row_and_all_of_itself() -> None:
    cache = ragged()
    cache.open(2)
    mask = cache.block_mask()
    assert mask is not None
    assert mask[:, 0].int().tolist() == [[[1, 1, 1, 0, 0]] * 2, [[1, 1, 1, 1, 1]] * 2]


def test_rows_are_kept_and_replaced() -> None:
    cache, fresh = ragged(), RowCache(1, 4, CPU)
    fresh.open(2)
    fresh.update(states([20, 21]), states([20, 21]), 0)
    fresh.advance(2)
    cache.replace([1], fresh)
    assert cache.lengths.tolist() == [1, 2]
    cache.keep([1])
    cache.open(1)
    keys, _ = cache.update(states([30]), states([30]), 0)
    assert keys[:, 0, :, 0].tolist() == [[20, 21, 30]]
