"""Tokens are held against the distribution that they should be drawn from."""

import math

import pytest
import torch

from deepspec.states.drawn import DEVIATIONS, Drawn, below_likeliest, drawn, together


def test_a_place_is_the_mass_before_it_and_half_of_its_own() -> None:
    """Of 0.5, 0.3, 0.2 the places are 0.25, 0.65, 0.9: 1/2 on average, and apart from it by 0.0625·0.5 + …"""
    chances = torch.tensor([[0.2, 0.5, 0.3]])
    found = [drawn(chances.log(), torch.tensor([token]), 1.0) for token in (1, 2, 0)]
    assert [each.off + 0.5 for each in found] == pytest.approx([0.25, 0.65, 0.9])
    variance = 0.5 * 0.25**2 + 0.3 * 0.15**2 + 0.2 * 0.4**2
    assert [each.variance for each in found] == pytest.approx([variance] * 3)
    both = together(found[:2])
    assert both.off == pytest.approx(-0.1)
    assert both.count == 2
    assert both.deviations == pytest.approx(-0.1 / math.sqrt(2 * variance))


def test_the_temperature_counts() -> None:
    """At temperature 1/2 the chances are squared: 0.8 and 0.2 become 16/17 and 1/17."""
    found = drawn(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([1]), 0.5)
    assert found.off == pytest.approx(16 / 17 + 1 / 34 - 0.5)


def test_what_is_drawn_rightly_is_explained_by_chance_and_what_is_not_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = (2 * torch.randn(4000, 50, generator=generator)).softmax(-1)
    right = chances.multinomial(1, generator=generator)[:, 0]
    flat = (chances**0.8).multinomial(1, generator=generator)[:, 0]
    scores = [drawn(chances[rows].log(), right[rows], 1.0).deviations for rows in torch.arange(4000).split(96)]
    assert torch.tensor(scores).std() == pytest.approx(1, abs=0.3)
    assert max(map(abs, scores)) < DEVIATIONS
    assert drawn(chances.log(), flat, 1.0).deviations > DEVIATIONS
    assert drawn(chances.log(), chances.argmax(-1), 1.0).deviations < -DEVIATIONS


def test_what_can_only_be_one_token_is_right_or_never_is() -> None:
    sure = torch.tensor([[0.0, -200.0]]).expand(30, -1)
    assert abs(drawn(sure, torch.zeros(30, dtype=torch.int64), 1.0).deviations) < 1
    assert drawn(sure, torch.ones(30, dtype=torch.int64), 1.0).deviations > DEVIATIONS
    assert Drawn(0.0, 0.0, 0).deviations == 0


def test_greedy_tokens_are_the_likeliest() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    assert below_likeliest(chances, torch.tensor([0, 2])) == 0
    assert below_likeliest(chances, torch.tensor([1, 2])) == pytest.approx(math.log(5 / 3))
