"""Parts, forward passes and cuts, on numbers small enough to check by hand."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.cache.background import Background
from deepspec.chat.template import Sample
from deepspec.passes.samples import Item, batches, cut_parts, fit, raw_bytes, shard_files, stretch_start
from deepspec.records.batch import supervises
from deepspec.target_cache.sizes import published_bytes


def item(length: int, answer: int = 1) -> Item:
    mask = [False] * (length - answer) + [True] * answer
    sample = Sample(sample_id=f"n{length}", input_ids=list(range(length)), loss_mask=mask)
    return Item(sample=sample, split="train")


def lengths(groups: list[list[Item]]) -> list[list[int]]:
    return [[entry.length for entry in group] for group in groups]


def test_last_state_is_stored_beside_what_is_supervised() -> None:
    mask = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 1], dtype=torch.bool)
    assert supervises(mask).int().tolist() == [0, 0, 1, 1, 1, 1, 0, 1, 1]
    sample = Sample(sample_id="x", input_ids=[0] * 9, loss_mask=mask.tolist())
    assert Item(sample=sample, split="train").last_rows == 6


def test_raw_bytes_of_a_sample() -> None:
    # 10 tokens of 2 layers, the last state of 3 answered tokens and the one before, 4 values of 2 bytes each
    assert raw_bytes(item(10, answer=3), layers=2, width=4) == (20 + 4) * 8 + 10 * 5


def test_published_layout_takes_31_kb_a_token_of_qwen3_4b() -> None:
    assert published_bytes(1, layers=5, width=2560) == 30_726
    assert published_bytes(1_240_000_000, layers=5, width=2560) / 1e12 == pytest.approx(38.1, abs=0.05)


def test_parts_are_cut_by_bytes_in_order() -> None:
    one = raw_bytes(item(10), 1, 4)
    parts = cut_parts([item(10)] * 5, layers=1, width=4, part_bytes=2 * one)
    assert lengths(parts) == [[10, 10], [10, 10], [10]]


def test_a_sample_larger_than_a_part_is_a_part_of_its_own() -> None:
    one = raw_bytes(item(10), 1, 4)
    parts = cut_parts([item(10), item(100), item(10), item(10)], layers=1, width=4, part_bytes=2 * one)
    assert lengths(parts) == [[10], [100], [10, 10]]


def test_passes_hold_like_lengths_and_no_more_tokens_than_allowed() -> None:
    passes = list(batches([item(n) for n in (3, 9, 4, 10, 2)], batch_tokens=20))
    assert lengths(passes) == [[10, 9], [4, 3, 2]]
    assert lengths(list(batches([item(50), item(2)], batch_tokens=20))) == [[50], [2]]


def test_passes_hold_every_sample_once() -> None:
    rng = random.Random(0)
    items = [item(rng.randint(2, 60)) for _ in range(200)]
    found = [entry for group in batches(items, 128) for entry in group]
    assert sorted(map(id, found)) == sorted(map(id, items))


def test_shards_share_files_evenly() -> None:
    names = [f"f{n}" for n in range(7)]
    assert [shard_files(names, shard, 3) for shard in range(3)] == [["f0", "f1"], ["f2", "f3"], ["f4", "f5", "f6"]]


def test_fit_cuts_to_the_limit_and_then_to_the_last_supervised_token() -> None:
    sample = Sample(sample_id="x", input_ids=[1, 2, 3, 4, 5, 6], loss_mask=[False, True, True, False, False, True])
    assert fit(sample, 10) == sample
    assert fit(sample, 5) == Sample(sample_id="x", input_ids=[1, 2, 3], loss_mask=[False, True, True])


def test_background_keeps_order_and_raises_the_first_error() -> None:
    done: list[int] = []

    def work(n: int) -> None:
        if n == 3:
            raise ValueError("three")
        done.append(n)

    def feed() -> None:
        with Background(depth=2) as background:
            for n in range(10):
                background.run(work, n)

    with pytest.raises(ValueError, match="three"):
        feed()
    assert done[:3] == [0, 1, 2]
    assert 9 not in done


def test_background_waits_for_the_end() -> None:
    done: list[int] = []
    with Background(depth=1) as background:
        for n in range(5):
            background.run(done.append, n)
    assert done == [0, 1, 2, 3, 4]


def wanted(cut: str = "anywhere", seed: int = 0, max_length: int = 4) -> Any:
    return SimpleNamespace(cut=cut, cut_seed=seed, max_length=max_length)


def test_a_stretch_may_begin_anywhere_and_never_with_a_token_that_is_predicted_of_nothing() -> None:
    sample = Sample(sample_id="x", input_ids=[1, 2, 3, 4, 5, 6], loss_mask=[False, True, True, True, True, False])
    assert fit(sample, 3, 2) == Sample(sample_id="x", input_ids=[3, 4, 5], loss_mask=[False, True, True])
    assert fit(sample, 4, 2) == Sample(sample_id="x", input_ids=[3, 4, 5], loss_mask=[False, True, True])
    assert sample.loss_mask[2]


def test_every_stretch_that_holds_something_supervised_is_drawn_and_no_other() -> None:
    """Of ten tokens the third and the eighth are supervised, and four are kept: stretches that begin at 0 to 6."""
    mask = [place in (2, 7) for place in range(10)]
    starts = {
        stretch_start(Sample(sample_id=str(name), input_ids=list(range(10)), loss_mask=mask), wanted())
        for name in range(200)
    }
    assert starts == {0, 1, 2, 4, 5, 6}


def test_a_stretch_is_a_function_of_seed_and_sample() -> None:
    samples = [Sample(sample_id=str(name), input_ids=[0] * 99, loss_mask=[True] * 99) for name in range(20)]
    one, again, other = ([stretch_start(each, wanted(seed=seed)) for each in samples] for seed in (0, 0, 1))
    assert one == again != other


def test_heads_and_samples_that_are_short_enough_begin_where_they_did() -> None:
    sample = Sample(sample_id="x", input_ids=[0] * 9, loss_mask=[True] * 9)
    assert stretch_start(sample, wanted("head")) == stretch_start(sample, wanted(max_length=9)) == 0
