"""The prefix scheduler, by hand and by replay."""

import numpy as np
import pytest

from deepspec.decoding.schedule import StepRate, admit, replay


def test_free_tokens_are_all_admitted_and_dear_ones_not() -> None:
    survival = np.array([[0.9, 0.5], [0.4, 0.1]])
    assert admit(survival, lambda _: 1.0).tolist() == [2, 2]
    assert admit(survival, lambda tokens: 1 / tokens).tolist() == [0, 0]


def test_tokens_are_admitted_while_the_throughput_rises() -> None:
    survival = np.array([[0.9, 0.5], [0.4, 0.1]])
    seconds = {2: 1.0, 3: 1.1, 4: 1.2, 5: 1.5, 6: 1.6}
    # 2/1 = 2, 2.9/1.1 = 2.64, 3.4/1.2 = 2.83, 3.8/1.5 = 2.53: the third token makes it fall
    assert admit(survival, lambda tokens: 1 / seconds[int(tokens)]).tolist() == [2, 0]


def test_it_stops_at_the_first_fall_though_more_would_rise_again() -> None:
    survival = np.array([[0.9, 0.8]])
    seconds = {1: 1.0, 2: 2.0, 3: 2.0}  # 1, 0.95, 1.35
    assert admit(survival, lambda tokens: 1 / seconds[int(tokens)]).tolist() == [0]


def test_a_rate_is_interpolated_inside_and_proportional_beyond() -> None:
    rate = StepRate(tokens=(1, 9), seconds=(1.0, 3.0))
    assert rate(5) == pytest.approx(0.5)
    assert rate(18) == pytest.approx(1 / 6)


def test_scheduling_is_worth_most_where_the_target_is_busy() -> None:
    generator = np.random.default_rng(0)
    chances = generator.uniform(0.2, 0.95, size=(2000, 1)) * np.ones((1, 6))
    survival = np.cumprod(chances, 1, dtype=np.float64)
    accepted = np.cumprod(generator.random((2000, 6)) < chances, 1).sum(1)
    rate = StepRate(tokens=(1, 64), seconds=(1.0, 1.2))
    one, many = (replay(survival, accepted, rate, requests) for requests in (1, 64))
    assert one.scheduled == pytest.approx(one.fixed, rel=0.05)
    assert many.scheduled > 1.2 * many.fixed
    assert many.scheduled >= 64 * rate(64)


def test_a_replay_by_hand() -> None:
    survival, accepted = np.array([[1.0, 1.0]]), np.array([1])
    found = replay(survival, accepted, lambda tokens: {1: 1.0, 2: 0.9, 3: 0.8}[int(tokens)], 1)
    assert (found.fixed, found.scheduled) == pytest.approx((2 * 0.8, 2 * 0.8))  # survival promises both tokens
    unsure = replay(np.array([[0.5, 0.1]]), accepted, lambda tokens: {1: 1.0, 2: 0.9, 3: 0.1}[int(tokens)], 1)
    assert (unsure.fixed, unsure.scheduled) == pytest.approx((2 * 0.1, 2 * 0.9))
