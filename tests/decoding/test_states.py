"""States that give no tokens back: what is kept from before, what is read again, and how many passes that takes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepspec.kv.states import StateCache

CPU = torch.device("cpu")


class Summing:
    """A model with one layer whose state is the sum of all tokens; it notes what it reads again."""

    def __init__(self, width: int = 9) -> None:
        self.width = width
        self.read: list[list[list[int]]] = []

    def cache(self, prompts: Sequence[Sequence[int]]) -> StateCache:
        cache = StateCache(len(prompts), 16, CPU, self)
        for row, prompt in enumerate(prompts):
            cache.begin(torch.tensor([prompt]), [row])
            self.passes(cache)
            cache.advance(len(prompt))
        self.read.clear()
        return cache

    def again(self, tokens: Tensor, cache: StateCache) -> None:
        self.read.append(tokens.tolist())
        self.passes(cache)

    def passes(self, cache: StateCache) -> None:
        read = 0
        for piece in torch.split(cache.tokens, self.width, dim=1):
            cache.open(piece.shape[1], read)
            read += piece.shape[1]
            before = cache.get_recurrent_state(0)
            state = torch.zeros(len(piece)) if before is None else before
            cache.update_recurrent_state(state + piece.sum(1), 0)
            cache.passed(read)

    def sums(self, cache: StateCache) -> list[float]:
        cache.begin(torch.zeros(len(cache.lengths), 1, dtype=torch.int64))
        state = cache.get_recurrent_state(0)
        assert state is not None
        return state.tolist()


def after(summing: Summing, counts: list[int]) -> StateCache:
    """Return four rows of different lengths that read 1, 2, 3 and kept some of them."""
    cache = summing.cache([[10], [20, 20], [30, 30], [40]])
    cache.begin(torch.tensor([[1, 2, 3]] * 4))
    summing.passes(cache)
    cache.advance(torch.tensor(counts))
    return cache


def test_rows_that_kept_as_many_read_them_again_in_one_pass() -> None:
    summing = Summing()
    cache = after(summing, [1, 2, 1, 3])
    assert summing.read == [[[1], [1]], [[1, 2]]]
    assert cache.lengths.tolist() == [2, 4, 3, 4]
    assert summing.sums(cache) == [11, 43, 61, 46]


def test_where_all_is_kept_or_nothing_nothing_is_read_again() -> None:
    summing = Summing()
    assert summing.sums(after(summing, [3, 0, 3, 0])) == [16, 40, 66, 40]
    assert summing.read == []


def test_a_model_that_reads_one_token_a_pass_has_the_states_behind_each() -> None:
    summing = Summing(width=1)
    assert summing.sums(after(summing, [1, 2, 0, 3])) == [11, 43, 60, 46]
    assert summing.read == []


def test_a_reading_that_was_never_kept_leaves_nothing() -> None:
    summing = Summing()
    cache = after(summing, [3, 3, 3, 3])
    cache.begin(torch.tensor([[100]] * 4))
    summing.passes(cache)
    assert summing.sums(cache) == [16, 46, 66, 46]
    assert cache.lengths.tolist() == [4, 5, 5, 4]


def test_rows_go_and_come_with_their_states() -> None:
    summing = Summing()
    cache, fresh = after(summing, [1, 2, 1, 3]), summing.cache([[7, 7]])
    cache.replace([2], fresh)
    assert summing.sums(cache) == [11, 43, 14, 46]
    cache.keep([2, 0])
    assert cache.lengths.tolist() == [2, 2]
    assert summing.sums(cache) == [14, 11]


def test_a_model_may_write_into_a_state_that_it_was_given() -> None:
    """Kernels for one token do; what was before stays as it was."""
    summing = Summing()
    cache = after(summing, [3, 3, 3, 3])
    cache.begin(torch.tensor([[1]] * 4))
    state = cache.get_recurrent_state(0)
    assert state is not None
    state += 1000
    assert summing.sums(cache) == [16, 46, 66, 46]


def test_a_convolution_is_given_its_last_inputs_and_zeros_before_the_first() -> None:
    cache = StateCache(1, 8, CPU, Summing())
    cache.begin(torch.tensor([[1, 2]]))
    assert cache.get_conv_state(0) is None
    assert cache.update_conv_state(torch.tensor([[[1.0, 2.0]]]), 0, conv_kernel_size=3).tolist() == [[[0, 1, 2]]]
    assert cache.update_conv_state(torch.tensor([[[3.0]]]), 0, conv_kernel_size=3).tolist() == [[[0, 1, 2, 3]]]
    state = cache.get_conv_state(0)
    assert state is not None
    assert state.tolist() == [[[1, 2, 3]]]


def test_a_layer_is_asked_for_its_states_as_before_transformers_5_21() -> None:
    """Layer 1 has a convolution's inputs and no other state; layer 0, in the same pass, has none yet."""
    cache = StateCache(1, 8, CPU, Summing())
    cache.begin(torch.tensor([[1, 2, 3]]))
    cache.update_conv_state(torch.tensor([[[1.0, 2.0, 3.0]]]), 1, conv_kernel_size=2)
    assert [cache.has_previous_state(layer) for layer in (0, 1, None)] == [False, True, True]
    own = cache.layers[1]
    assert own.conv_states[0] is cache.get_conv_state(1)
    assert (own.recurrent_states, own.record_past, cache.layers[0].conv_states) == ({}, False, {})
