"""Numbers of serving, each by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deepspec.formats.levels import Level
from deepspec.formats.numbers import Interval
from deepspec.formats.served import ProposedLength, UnderLoad, changes
from deepspec.serving.client import ServedAnswer
from deepspec.serving.counters import Counters, gauge, read_counters
from deepspec.serving.levels import arrivals, behind
from deepspec.serving.numbers import (
    accepted_in_answers,
    accepted_in_counters,
    between_tokens,
    break_even,
    closed_speed,
    crossing,
    of_draws,
    open_speed,
    percentiles,
    speedups,
    tokens_per_round,
    with_rounds,
)
from deepspec.serving.proposals import best_for_all, proposals
from deepspec.serving.warnings import warnings
from tests.given.published.numbers import interval, level
from tests.given.some import some


def answer(seconds: float = 1.0, tokens: int = 10, **told: Any) -> ServedAnswer:
    moments = {"intended": 0.0, "sent": 0.0, "arrivals": (0.1, seconds), "end": seconds}
    return ServedAnswer(tokens=tokens, text="", **{**moments, **told})


def test_percentiles_are_values_of_the_nearest_rank() -> None:
    found = percentiles([float(n) for n in range(100, 0, -1)])
    assert (found.p50, found.p95, found.p99) == (50, 95, 99)
    assert percentiles([3.0]).p99 == 3.0


def test_percentiles_count_by_weight() -> None:
    found = percentiles([1.0, 2.0], [98, 2])
    assert (found.p50, found.p95, found.p99) == (1, 1, 2)


def test_tokens_that_come_together_share_the_wait() -> None:
    found = answer(tokens=5, arrivals=(1.0, 2.0, 2.0, 2.0005, 2.5), end=2.5)
    assert found.gaps() == [(pytest.approx(1 / 3), 3.0), (0.5, 1.0)]
    assert between_tokens([found]).p50 == pytest.approx(1 / 3)
    assert between_tokens([found]).p99 == 0.5


def test_pieces_of_several_tokens_count_as_so_many() -> None:
    found = answer(tokens=8, arrivals=(1.0, 2.0, 3.0, 4.0), end=4.0)  # two tokens a piece
    assert found.gaps() == [(0.5, 2.0)] * 3


def test_latency_counts_from_the_moment_at_which_a_request_was_to_be_sent() -> None:
    late = answer(intended=0.0, sent=5.0, arrivals=(6.0, 7.0), end=7.0)
    assert (late.latency, late.first) == (7.0, 6.0)


def test_speed_of_a_closed_loop_is_that_of_little() -> None:
    found = closed_speed([answer(2.0), answer(2.0)], load=4, seed=0)  # 4 at once, each 10 tokens in 2 seconds
    assert (found.value, found.low, found.high) == (20, 20, 20)


def test_speed_of_an_open_loop_is_from_the_first_arrival_to_the_last_answer() -> None:
    assert open_speed([answer(2.0), answer(4.0, intended=3.0)]).value == 5.0


def test_a_speed_up_is_a_ratio_on_the_same_prompts() -> None:
    draws = speedups([answer(1.0), answer(3.0)], [answer(2.0), answer(6.0)], seed=0)
    assert np.ptp(draws) == pytest.approx(0)  # each prompt takes half the time: resampling changes nothing
    assert of_draws(draws) == Interval(value=2, low=2, high=2)


def test_the_break_even_load_lies_between_levels_in_the_logarithm() -> None:
    assert crossing([2, 8], [1.2, 0.8]) == pytest.approx(4)  # half way from 2 to 8
    assert crossing([1, 2, 4], [1.5, 1.25, 0.5]) == pytest.approx(2 ** (1 + 1 / 3))
    assert crossing([1, 2, 4], [0.9, 1.1, 0.9]) == pytest.approx(2**1.5)  # the last time that it pays
    assert crossing([1, 2], [0.9, 0.8]) == 0
    assert math.isinf(crossing([1, 2], [1.2, 1.1]))


def test_the_break_even_load_has_the_interval_of_its_resamples() -> None:
    draws = [np.array([1.2] + [1.2] * 1000), np.array([0.8] + [0.8] * 500 + [1.1] * 500)]
    found = break_even([2, 8], draws)
    assert found is not None
    assert (found.value, found.low) == pytest.approx((4, 4))
    assert found.high is None
    assert found.told(2, 8) == "up to 4.0 requests at once (95 %: 4.0 to above 8)"
    assert break_even([], []) is None


def test_a_draft_that_never_pays_says_so() -> None:
    found = break_even([1, 2], [np.full(11, 0.9), np.full(11, 0.8)])
    assert found is not None
    assert found.told(1, 2) == "at no load of 1 to 2 requests at once (95 %: below 1 to below 1)"


def test_a_draft_that_still_pays_at_the_highest_load_says_so() -> None:
    found = break_even([1, 2], [np.full(11, 1.9), np.full(11, 1.8)], context=512)
    assert found is not None
    assert found.told(1, 2) == (
        "at every load of 1 to 2 requests at once (95 %: above 2 to above 2, prompts of 512 tokens)"
    )


def test_rounds_are_what_no_draft_and_no_prompt_made() -> None:
    answers = [answer(tokens=9, drafted=12, accepted=4)]  # 9 - 1 - 4 rounds made 8 tokens
    told = accepted_in_answers(answers)
    assert told is not None
    assert (told.rounds, told.tokens_per_round.value) == (4, 2.0)
    assert accepted_in_answers([answer(tokens=9)]) is None
    assert tokens_per_round([answer(tokens=1)]) is None


def test_drafts_tell_the_round_that_a_stop_token_among_them_hides() -> None:
    """Three drafts a round: 1 + (3 + 1) + (1 + 1) + 3 tokens, of which a draft is the last; others end otherwise."""
    told = [(10, 9, 7, 3), (9, 9, 5, 3), (12, 15, 6, 5)]
    answers = [answer(tokens=tokens, drafted=drafted, accepted=accepted) for tokens, drafted, accepted, _ in told]
    assert [each.rounds for each in answers] == [2, 3, 5]
    assert [each.rounds for each in with_rounds(answers)] == [rounds for *_, rounds in told]


def test_a_last_round_with_fewer_drafts_or_none_is_a_round() -> None:
    cut = answer(tokens=8, drafted=7, accepted=4)  # 3 + 3 + 1 drafts: 3 rounds
    alone = answer(tokens=9, drafted=6, accepted=5)  # 3 + 3 drafts, and a round by itself: 3 rounds
    found = with_rounds([answer(tokens=10, drafted=9, accepted=7), cut, alone, answer(tokens=5)])
    assert [each.rounds for each in found] == [3, 3, 3, 4]


def test_an_answer_that_was_cut_ends_with_a_token_of_the_targets_own() -> None:
    """Three drafts a round, of 9 tokens: 1 + (2 + 1) + (1 + 1) + (2 + 1), and 1 + three times (1 + 1) + (1 + 1).

    In their last rounds there is room for 2 and 1: 8 and 10 drafts, which rounds of two would make as well.
    """
    cut = [answer(tokens=9, drafted=drafted, accepted=kept, cut=True) for drafted, kept in ((8, 5), (10, 4))]
    assert [each.rounds for each in with_rounds(cut)] == [3, 4]
    ended = answer(tokens=7, drafted=6, accepted=5)  # 1 + (3 + 1) + 2
    assert [each.rounds for each in with_rounds([*cut, ended])] == [3, 4, 2]


def test_an_answer_that_was_cut_has_room_for_fewer_drafts_in_several_rounds() -> None:
    """Five drafts a round, of 12 tokens and none accepted: six times 5, then 4, 3, 2, 1 and none."""
    cut = answer(tokens=12, drafted=40, accepted=0, cut=True)
    ended = answer(tokens=8, drafted=10, accepted=6)  # 1 + (5 + 1) + 1, whose last is a draft
    assert [each.rounds for each in with_rounds([cut, ended])] == [11, 2]


def test_drafts_that_are_not_as_many_in_each_round_tell_nothing() -> None:
    """Rounds of 1 to 7 drafts, where a proposal ends before an unlikely token."""
    answers = [answer(tokens=41, drafted=70, accepted=20), answer(tokens=41, drafted=25, accepted=20)]
    assert with_rounds(answers) == answers
    counted = [answer(tokens=10, drafted=9, accepted=7, counted=4), answer(tokens=10, drafted=9, accepted=7)]
    assert with_rounds(counted) == counted


def test_counters_by_position_give_an_interval() -> None:
    told = accepted_in_counters(Counters(rounds=100, drafted=200, accepted=75, by_position=(50, 25)))
    assert told is not None
    assert told.by_position == (0.5, 0.25)
    # accepted 0, 1, 2 in 50, 25, 25 of 100 rounds: mean 0.75, square 1.25, variance 0.6875
    width = 1.96 * math.sqrt(0.6875 / 100)
    assert told.tokens_per_round.value == 1.75
    assert told.tokens_per_round.high == pytest.approx(1.75 + width)
    bare = accepted_in_counters(Counters(rounds=100, drafted=200, accepted=75))
    assert bare is not None
    assert bare.tokens_per_round.low is None


def test_rounds_that_an_engine_tells_by_what_they_accepted_are_told_by_position() -> None:
    """Of 6 rounds, 3 accepted one token or more, and 1 two."""
    one = answer(tokens=5, drafted=9, accepted=1, counted=3, by_accepted=(2, 1))
    other = answer(tokens=7, drafted=9, accepted=3, counted=3, by_accepted=(1, 1, 1))
    found = some(accepted_in_answers([one, other]))
    assert found.by_position == pytest.approx((3 / 6, 1 / 6))
    silent = answer(tokens=7, drafted=9, accepted=3)
    assert some(accepted_in_answers([one, silent])).by_position == ()


def test_counters_are_read_over_all_labels() -> None:
    text = (
        'vllm:spec_decode_num_drafts_total{engine="0"} 10.0\nvllm:spec_decode_num_drafts_total{engine="1"} 2.0\n'
        'vllm:spec_decode_num_draft_tokens_total{engine="0"} 3e1\n'
        'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 7.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 5.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_created{engine="0",position="0"} 1.7e9\n'
    )
    assert read_counters(text) == Counters(rounds=12, drafted=30, accepted=7, by_position=(5, 2))
    assert read_counters("vllm:num_requests_running 0\n") is None
    assert (
        gauge(
            'sglang:spec_accept_length{rank="0"} 2\nsglang:spec_accept_length{rank="1"} 3\n',
            "sglang:spec_accept_length",
        )
        == 2.5
    )


def test_counters_that_begin_anew_are_no_difference() -> None:
    before = Counters(rounds=10, drafted=30, accepted=7, by_position=(5, 2))
    after = Counters(rounds=14, drafted=42, accepted=9, by_position=(6, 3))
    assert after.since(before) == Counters(rounds=4, drafted=12, accepted=2, by_position=(1, 1))
    assert before.since(after) is None
    assert Counters(rounds=1, drafted=3, accepted=1, by_position=(1,)).since(before) is None


def test_arrivals_come_at_the_rate_and_by_seed() -> None:
    found = arrivals(4.0, 2001, seed=3)
    assert found[0] == 0
    assert found[-1] == pytest.approx(500, rel=0.1)
    assert found == arrivals(4.0, 2001, seed=3) != arrivals(4.0, 2001, seed=4)
    assert np.std(np.diff(found)) == pytest.approx(0.25, rel=0.1)  # by chance, not in step


def test_an_engine_that_falls_behind_arrivals_is_told() -> None:
    quick, slow = answer(1.5, intended=1.0), answer(9.0, intended=1.0)
    assert behind([answer(0.5), quick, answer(2.5, intended=2.0)], "with") == []
    assert behind([slow, slow, answer(2.5, intended=2.0)], "with") == [
        "with: 3 of 3 requests were open when the last arrived"
    ]


def test_as_many_tokens_are_proposed_as_pay() -> None:
    # plain 10 tokens/s: a step 0.1. One token proposed: 1.5 tokens in 0.1 (free) or in 0.2 (dear)
    free, dear = level(1, drafting=15, plain=10), level(8, drafting=7.5, plain=10)
    found = proposals([free, dear], (), 1)
    assert [(each.load, each.tokens) for each in found] == [(1, 1), (8, 0)]
    assert [each.speedup for each in found] == pytest.approx([1.5, 1.0])
    best = best_for_all([free, dear], (), 1)  # 1.5 x 0.75 > 1
    assert best is not None
    assert (best.tokens, best.load) == (1, 8)
    assert best.speedup == pytest.approx(math.sqrt(1.5 * 0.75))


def test_positions_measured_here_stand_in_for_those_that_an_engine_does_not_tell() -> None:
    (found,) = proposals([level(1, drafting=10, plain=10, per_round=2.0, positions=())], (0.9, 0.1), 2)
    # a round of two tokens costs two steps, so one costs 1.5: 1.9 / 1.5 beats 2.0 / 2
    assert found.tokens == 1
    assert found.speedup == pytest.approx(1.9 / 1.5)


def test_a_level_is_slower_than_before_where_intervals_are_apart(under_load: Callable[..., UnderLoad]) -> None:
    slower = under_load(level(1, drafting=8, plain=10), level(2, drafting=20, plain=10))
    before = under_load(level(1, drafting=9, plain=10), level(2, drafting=20, plain=10), level(4, drafting=1, plain=1))
    assert [(each.load, each.verdict) for each in changes(before, slower)] == [(1, "slower"), (2, "no difference")]
    assert [each.verdict for each in changes(slower, before)] == ["faster", "no difference"]


def test_batch_sizes_that_take_as_many_tokens_are_one_entry_for_vllm(under_load: Callable[..., UnderLoad]) -> None:
    chosen = tuple(
        ProposedLength(load=load, tokens=tokens, speedup=1) for load, tokens in ((1, 4), (2, 4), (4, 2), (8, 0))
    )
    assert under_load().model_copy(update={"proposals": chosen}).schedule() == [[1, 2, 4], [3, 4, 2], [5, 8, 1]]


def test_acceptance_that_falls_with_the_load_is_said_with_the_worst_level(under_load: Callable[..., UnderLoad]) -> None:
    def at(load: int, value: float) -> Level:
        free = level(load, drafting=10, plain=8)
        assert free.accepted is not None
        rounds = free.accepted.model_copy(update={"tokens_per_round": interval(value)})
        return free.model_copy(update={"accepted": rounds})

    def told(*levels: Level) -> str:
        return " ".join(warnings(under_load(*levels), "llama.cpp", decoded_here=True))

    assert "falls with its load" not in told(at(1, 1.6), at(2, 1.45), at(4, 1.7))
    assert (
        "What fake 7 accepts falls with its load: 1.150 [1.050, 1.250] tokens per round at 8 requests at once, "
        "1.600 [1.500, 1.700] at 1 requests at once." in told(at(1, 1.6), at(2, 1.45), at(4, 1.2), at(8, 1.15))
    )
