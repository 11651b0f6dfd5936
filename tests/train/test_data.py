import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepspec.records.stream import Cut, Draw, Stream, key_of
from tests.given.drafts.toy import ToySamples


def all_pieces(stream: Stream, cut: Cut) -> list[list[list[Draw]]]:
    """Return the micro-batches of the first step, of all ranks, longest rows first."""
    return stream._pieces(stream.draws(0), cut)


def numbers(stream: Stream, step: int) -> list[int]:
    return [draw.number for draw in stream.draws(step)]


def test_an_epoch_holds_every_sample_once_and_steps_run_on_into_the_next() -> None:
    stream = Stream(ToySamples(5), global_batch=3, seed=0)
    drawn = [draw for step in range(5) for draw in stream.draws(step)]  # 15 draws: three epochs of 5
    assert [draw.epoch for draw in drawn] == [0] * 5 + [1] * 5 + [2] * 5
    for epoch in range(3):
        assert sorted(draw.number for draw in drawn if draw.epoch == epoch) == [0, 1, 2, 3, 4]


def test_a_step_is_the_same_whatever_was_asked_before() -> None:
    one, other = (Stream(ToySamples(7), global_batch=4, seed=3) for _ in range(2))
    for step in range(6):
        one.draws(step)
    assert one.draws(5) == other.draws(5)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("pack", [False, True])
def test_the_ranks_share_a_step_without_loss_or_doubling(ranks: int, most: int, pack: bool) -> None:
    stream = Stream(ToySamples(12), global_batch=8, seed=0)
    shares = [stream.share(2, rank, Cut(ranks=ranks, micro_batch=most, pack=pack)).pieces for rank in range(ranks)]
    dealt = [draw for share in shares for piece in share for row in piece for draw in row]
    assert sorted(dealt, key=lambda d: d.key) == sorted(stream.draws(2), key=lambda d: d.key)
    assert max(len(piece) for share in shares for piece in share) <= most
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(shares)  # a rank with nothing to do would not know what the others sum


def lengths(samples: ToySamples, pieces: list[list[list[Draw]]]) -> list[list[int | tuple[int, ...]]]:
    """Return the length of every sample; a row of several is a tuple of them."""
    rows = [[tuple(samples.length(draw.number) for draw in row) for row in piece] for piece in pieces]
    return [[row[0] if len(row) == 1 else row for row in piece] for piece in rows]


def test_batches_join_samples_of_like_length_however_many_ranks_there_are() -> None:
    samples = ToySamples(7)  # lengths 5 … 11
    stream = Stream(samples, global_batch=7, seed=0)
    assert lengths(samples, stream.share(0, 0, Cut(ranks=1, micro_batch=3)).pieces) == [[11, 10], [9, 8], [7, 6, 5]]
    assert lengths(samples, stream.share(0, 0, Cut(ranks=2, micro_batch=2)).pieces) == [
        [11],
        [6, 5],
    ]  # dealt there and back: 22 tokens
    assert lengths(samples, stream.share(0, 1, Cut(ranks=2, micro_batch=2)).pieces) == [[10, 9], [8, 7]]


class Lengths(ToySamples):
    """Samples of which only the lengths are asked for."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(1)
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def sample_id(self, number: int) -> str:
        return str(number)

    def length(self, number: int) -> int:
        return self.lengths[number]


def test_little_is_padded_where_lengths_differ_widely() -> None:
    """Lengths as of chats, 32 to 4096 tokens: dealt sample by sample to 8 ranks, a quarter would be padding."""
    rng = random.Random(0)
    told = [min(4096, max(32, int(rng.lognormvariate(6.4, 0.9)))) for _ in range(512)]
    samples = Lengths(told)
    stream = Stream(samples, global_batch=512, seed=0)
    pieces = all_pieces(stream, Cut(ranks=8, micro_batch=8))
    padded = sum(len(piece) * samples.length(piece[0][0].number) for piece in pieces)
    assert sum(told) / padded > 0.96


def test_packed_rows_are_filled_up_to_the_longest_sample() -> None:
    samples = Lengths([10, 7, 5, 4, 3, 2, 2])
    stream = Stream(samples, global_batch=7, seed=0)
    alone, shared = Cut(ranks=1, micro_batch=8, pack=True), Cut(ranks=2, micro_batch=1, pack=True)
    assert lengths(samples, all_pieces(stream, alone)) == [[10, (7, 3), (5, 4), (2, 2)]]
    assert lengths(samples, stream.share(0, 1, shared).pieces) == [[(7, 3)], [(5, 4)]]


def test_packed_rows_are_no_fewer_than_the_ranks() -> None:
    samples = Lengths([100, 3, 2, 2, 1])
    stream = Stream(samples, global_batch=5, seed=0)
    pieces = all_pieces(stream, Cut(ranks=4, micro_batch=8, pack=True))
    assert lengths(samples, pieces) == [[100], [(3, 1)], [2], [2]]


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_packing_keeps_every_sample_once_in_rows_no_longer_than_the_longest(
    told: list[int], ranks: int, most: int
) -> None:
    samples = Lengths(told)
    stream = Stream(samples, global_batch=len(told), seed=0)
    ranks = min(ranks, len(told))
    pieces = all_pieces(stream, Cut(ranks=ranks, micro_batch=most, pack=True))
    rows = [[draw.number for draw in row] for piece in pieces for row in piece]
    assert sorted(number for row in rows for number in row) == list(range(len(told)))
    assert max(sum(told[number] for number in row) for row in rows) == max(told)
    assert max(map(len, pieces)) <= most
    assert len(pieces) >= ranks


def test_tokens_of_a_step_are_counted_over_all_ranks() -> None:
    stream = Stream(ToySamples(7), global_batch=7, seed=0)
    assert stream.share(0, 1, Cut(ranks=2, micro_batch=2)).tokens == 5 + 6 + 7 + 8 + 9 + 10 + 11


def test_the_key_depends_on_seed_epoch_and_sample_and_fits_a_generator() -> None:
    keys = {key_of(0, 0, "a"), key_of(1, 0, "a"), key_of(0, 1, "a"), key_of(0, 0, "b")}
    assert len(keys) == 4
    assert key_of(0, 0, "a") == 2395482867014657407  # frozen: a resumed run must draw what the first one drew
    assert all(0 <= key < 1 << 63 for key in keys)
    torch.Generator().manual_seed(max(keys))
