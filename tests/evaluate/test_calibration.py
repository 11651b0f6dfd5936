"""Calibration, checked by hand and by construction."""

import numpy as np
import pytest

from deepspec.decoding.results import Decoded, Round
from deepspec.evaluate.calibration import auroc, calibration, fit_temperatures, measure


def rounds(logits: np.ndarray, accepted: np.ndarray) -> list[Decoded]:
    kept = tuple(
        Round(room=99, proposed=logits.shape[1], accepted=int(a), stopped=False, confidence=tuple(row))
        for row, a in zip(logits.tolist(), accepted, strict=True)
    )
    return [Decoded(sample_id="a", prompt_tokens=1, tokens=(1,), finish_reason="length", rounds=kept)]


def test_errors_of_four_predictions():
    found = measure(1, np.array([0.11, 0.14, 0.81, 0.84]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert found.ece == pytest.approx((2 * abs(0.125 - 0.5) + 2 * abs(0.825 - 1)) / 4)
    assert found.brier == pytest.approx((0.11**2 + 0.86**2 + 0.19**2 + 0.16**2) / 4)
    assert found.auroc == pytest.approx(1.0)
    assert [each.count for each in found.bins] == [2, 2]


def test_auroc_counts_ties_half():
    assert auroc(np.array([0.5, 0.5, 0.2]), np.array([1.0, 0.0, 0.0])) == pytest.approx(0.75)
    assert np.isnan(auroc(np.array([0.5, 0.6]), np.array([1.0, 1.0])))


def test_fitted_temperatures_undo_an_overconfident_head():
    generator = np.random.default_rng(0)
    true = generator.normal(0.5, 1.0, size=(6000, 2))
    passed = generator.random((6000, 2)) < 1 / (1 + np.exp(-true))
    accepted = np.cumprod(passed, axis=1).sum(1)
    told = true * np.array([3.0, 0.5])
    fitted = fit_temperatures(rounds(told, accepted))
    assert fitted == pytest.approx((3.0, 0.5), rel=0.25)
    before, after = calibration(rounds(told, accepted)), calibration(rounds(told, accepted), fitted)
    assert all(b.ece < a.ece / 2 for a, b in zip(before, after, strict=True))
