import math

import pytest

from deepspec.errors import TrainingError
from deepspec.steps.step_guard import StepGuard


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    guard = StepGuard(limit=2)
    assert not guard.allows(math.nan, 1.0, 0, ["a"])
    assert not guard.allows(1.0, math.inf, 1, ["a"])
    assert guard.allows(1.0, 1.0, 2, ["a"])
    assert (guard.skipped, guard.in_a_row) == (2, 0)


def test_too_many_in_a_row_stop_the_run_with_step_and_samples() -> None:
    guard = StepGuard(limit=1)
    guard.allows(math.nan, 1.0, 7, ["x"])
    with pytest.raises(TrainingError, match=r"step 8: loss nan.*sample-4.*deepspec cache verify"):
        guard.allows(math.nan, 1.0, 8, ["sample-4"])


def test_a_norm_ten_times_the_recent_mean_is_a_spike_and_does_not_move_the_mean() -> None:
    guard = StepGuard(limit=1)
    assert not any(guard.is_spike(1.0) for _ in range(20))
    assert not guard.is_spike(9.0)  # the mean is now 0.95 + 0.05 · 9 = 1.4
    assert guard.mean_norm == pytest.approx(1.4)
    assert guard.is_spike(14.1)
    assert guard.mean_norm == pytest.approx(1.4)
    assert guard.spikes == 1
