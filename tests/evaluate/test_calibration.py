"""Calibration, checked by hand and by construction."""

import numpy as np
import pytest

from deepspec.calibration.calibration import auroc, calibration, calibration_of
from deepspec.calibration.fitting import best_temperature, fit_temperatures, used
from deepspec.rounds.decoded import Decoded, Round
from deepspec.rounds.measure import resampled


def rounds(logits: np.ndarray, accepted: np.ndarray, samples: int = 20) -> list[Decoded]:
    """Return samples with rounds that told these confidences."""
    every = [
        Round(room=99, proposed=logits.shape[1], accepted=int(a), stopped=False, confidence=tuple(row))
        for row, a in zip(logits.tolist(), accepted, strict=True)
    ]
    return [
        Decoded(sample_id=str(n), prompt_tokens=1, tokens=(1,), finish_reason="length", rounds=tuple(every[n::samples]))
        for n in range(samples)
    ]


def told(count: int, scale: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence logits that are a scale times the true ones, and how many tokens were accepted."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0.5, 1.0, size=(count, len(scale)))
    passed = generator.random(true.shape) < 1 / (1 + np.exp(-true))
    return true * np.array(scale), np.cumprod(passed, axis=1).sum(1)


def test_errors_of_four_predictions() -> None:
    found = calibration_of(1, np.array([0.11, 0.14, 0.81, 0.84]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.ece == pytest.approx((2 * abs(0.125 - 0.5) + 2 * abs(0.825 - 1)) / 4)
    assert found.brier == pytest.approx((0.11**2 + 0.86**2 + 0.19**2 + 0.16**2) / 4)
    assert found.auroc == pytest.approx(1.0)
    assert [each.count for each in found.bins] == [2, 2]


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([0.5, 0.5, 0.2]), np.array([1.0, 0.0, 0.0])) == pytest.approx(0.75)
    assert np.isnan(auroc(np.array([0.5, 0.6]), np.array([1.0, 1.0])))


def test_fitted_temperatures_undo_an_overconfident_head() -> None:
    samples = rounds(*told(20_000, (3.0, 0.5), seed=0))
    fits = fit_temperatures(samples)
    assert used(fits) == pytest.approx((3.0, 0.5), rel=0.25)
    assert all(each.kept and each.difference.high < 0 for each in fits)
    before, after = calibration(samples), calibration(samples, used(fits))
    assert all(b.ece < a.ece / 2 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_to_noise_is_not_used(seed: int) -> None:
    """The head is right as it is: what 65 rounds ask for is not what the next thousand do."""
    fits = fit_temperatures(rounds(*told(65, (1.0, 1.0, 1.0), seed)))
    assert any(abs(each.temperature - 1) > 0.1 for each in fits)
    assert not any(each.kept for each in fits)
    assert used(fits) == ()


def test_a_position_that_needs_no_temperature_has_none() -> None:
    samples = rounds(*told(6000, (3.0, 1.0), seed=1))
    first, second = fit_temperatures(samples)
    assert (first.kept, second.kept) == (True, False)
    assert used((first, second)) == (first.temperature, 1.0)


def test_a_fit_that_only_moves_the_error_to_another_position_is_not_used() -> None:
    """The second position is right because the first one's error and its own cancel out."""
    logits, accepted = told(6000, (3.0, 1.0), seed=1)
    fits = fit_temperatures(rounds(logits, accepted))
    assert calibration(rounds(logits, accepted), used(fits))[1].ece <= calibration(rounds(logits, accepted))[1].ece


def test_fewer_samples_than_folds_tell_nothing() -> None:
    assert fit_temperatures(rounds(*told(6000, (3.0,), seed=0), samples=4)) == ()
    assert fit_temperatures([]) == ()


def test_the_best_temperature_of_four_rounds() -> None:
    """Three of four are accepted: the chance that fits is 3/4, the logit ln 3, the temperature ln 9 / ln 3 = 2."""
    found = best_temperature(np.full(4, np.log(9.0)), np.ones(4), np.array([1.0, 1.0, 1.0, 0.0]))
    assert found == pytest.approx(2.0, rel=0.03)


def test_an_interval_holds_what_resampling_can_give() -> None:
    """Of two values the mean of a resample is one of 0, 1 and 2, a quarter of them at either end."""
    values = np.array([0.0, 2.0])
    found = resampled(lambda weights: weights @ values / weights.sum(1), 2)
    assert (found.value, found.low, found.high) == (1.0, 0.0, 2.0)
