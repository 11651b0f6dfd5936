"""Numbers about rounds, checked by hand."""

import math

import pytest

from deepspec.rounds.decoded import Decoded, Round
from deepspec.rounds.measure import estimates, paired_difference, tally


def sample(*rounds: tuple[int, int], limit: int = 100, stopped: bool = False, name: str = "a") -> Decoded:
    """Return a sample of rounds (proposed, accepted); the last ends in an accepted stop token where `stopped`."""
    done, kept = 1, []
    for place, (proposed, accepted) in enumerate(rounds, 1):
        last = stopped and place == len(rounds)
        kept.append(Round(room=limit - done, proposed=proposed, accepted=accepted, stopped=last))
        done += kept[-1].tokens
    return Decoded(sample_id=name, prompt_tokens=5, tokens=(7,) * done, finish_reason="stop", rounds=tuple(kept))


def test_ratios_over_rounds() -> None:
    found = estimates(tally([sample((2, 2), (2, 0)), sample((2, 1), name="b")], 2))
    assert found["accepted_length"].value == pytest.approx((3 + 1 + 2) / 3)
    assert found["accepted_length_without_bonus"].value == pytest.approx(3 / 3)
    assert found["verify_rate"].value == pytest.approx(6 / 9)
    assert [each.value for each in found["cumulative"]] == pytest.approx([2 / 3, 1 / 3])
    assert [each.value for each in found["conditional"]] == pytest.approx([2 / 3, 1 / 2])


def test_an_interval_holds_its_value_and_shrinks_with_samples() -> None:
    few = estimates(tally([sample((2, i % 3), name=str(i)) for i in range(9)], 2))["accepted_length"]
    many = estimates(tally([sample((2, i % 3), name=str(i)) for i in range(900)], 2))["accepted_length"]
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_tokens_beyond_the_limit_are_not_counted() -> None:
    cut = sample((4, 4), limit=3)  # one token is there, two more fit: one accepted and the target's own
    assert len(cut.tokens) == 3
    within = estimates(tally([cut], 4))
    assert within["accepted_length"].value == 2.0
    assert within["verify_rate"].value == 1.0
    assert within["tau_deepspec"].value == 5.0


def test_a_round_that_stops_has_its_bonus_but_not_in_the_public_count() -> None:
    found = estimates(tally([sample((3, 1), (2, 2), stopped=True)], 3))
    assert found["accepted_length"].value == pytest.approx((2 + 3) / 2)
    assert found["tau_deepspec"].value == pytest.approx((2 + 2) / 2)
    assert found["tokens_per_round"].value == pytest.approx((2 + 2) / 2)


def test_a_position_that_was_never_proposed_has_no_number() -> None:
    assert math.isnan(estimates(tally([sample((1, 1))], 2))["cumulative"][1].value)


def test_a_paired_difference_sees_what_separate_intervals_do_not() -> None:
    first = [sample((4, i % 4), name=str(i)) for i in range(40)]
    second = [sample((4, i % 4 + 1), name=str(i)) for i in range(40)]
    found = paired_difference(tally(first, 4), tally(second, 4))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
