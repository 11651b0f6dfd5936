import math

import pytest

from deepspec.optimizers.schedule import learning_rate, rate_of, stable
from deepspec.train.spec import TrainSpec


def test_warmup_climbs_linearly_then_a_cosine_falls_to_zero() -> None:
    rates = [learning_rate(step, 10, peak=8.0, warmup_ratio=0.4) for step in range(10)]
    assert rates[:5] == [2.0, 4.0, 6.0, 8.0, 8.0]  # the cosine begins at the peak
    assert rates[7] == pytest.approx(4.0)  # half way down: 8 · (1 + cos(π/2)) / 2
    assert rates[9] == pytest.approx(4.0 * (1 + math.cos(5 * math.pi / 6)))


def test_the_peak_is_never_exceeded() -> None:
    for total in (1, 2, 7, 135, 1000):
        assert max(learning_rate(step, total, 1.0, 0.04) for step in range(total)) == 1.0


def test_the_number_of_warmup_steps_is_rounded_down() -> None:
    assert learning_rate(0, 49, 1.0, 0.04) == 1.0  # int(1.96) = 1 step: already the peak
    assert learning_rate(1, 49, 1.0, 0.04) == 1.0
    assert learning_rate(0, 10, 1.0, 0.04) == 1.0  # no warm-up step at all


def test_wsd_climbs_stays_and_falls() -> None:
    rates = [stable(step, 10, peak=8.0, warmup_ratio=0.2, decay_ratio=0.3) for step in range(10)]
    assert rates == [4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]  # three quarters, two, one of the peak


def test_a_spec_chooses_its_schedule() -> None:
    cosine, wsd = TrainSpec(), TrainSpec(schedule="wsd", warmup_ratio=0.1, decay_ratio=0.1)
    assert rate_of(50, 100, cosine) == learning_rate(50, 100, 6e-4, 0.04)
    assert rate_of(50, 100, wsd) == 6e-4
    with pytest.raises(ValueError, match="more than all steps together"):
        TrainSpec(schedule="wsd", warmup_ratio=0.5, decay_ratio=0.6)
