"""The tables of docs/scale.md are what the code says."""

import re
from pathlib import Path

import pytest

from deepspec.plan.cost.given import Hardware
from deepspec.simulate.scenario import Scenario
from tests.simulate import scale
from tests.simulate.scale import FOUR, LARGE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
LOG = (ROOT / "docs" / "log.md").read_text()


def test_the_page_says_what_the_code_computes() -> None:
    assert scale.computed() in PAGE


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_page_says_what_two_simulated_days_give() -> None:
    assert scale.days() in PAGE


def test_what_the_tables_call_measured_is_in_the_log() -> None:
    assert f"{scale.READ:,} | 1.03" in LOG
    assert f"the same, 4 rows, a sample | {scale.STEP * 1e3:.1f} (" in LOG


def test_rates_can_be_checked_by_hand() -> None:
    """An engine of 8 cards at half the rate, for 2 × 17 B operations a token where 2 × 4.02 B are measured."""
    assert FOUR.engine_rate == pytest.approx(scale.READ)
    assert LARGE.engine_rate == pytest.approx(8 * 0.5 * scale.READ * 4_022_468_096 / 17e9)
    assert FOUR.token_bytes == 6 * 2560 * 2
    step = Hardware.model_validate(FOUR.hardware(1)).train_tflops * 1e12 * scale.STEP
    assert step == pytest.approx(22e12, rel=0.1)  # what a step of 4096 tokens takes


def test_cards_are_split_so_that_neither_side_waits_long() -> None:
    engines, ranks = LARGE.split(64)
    assert 8 * engines + ranks == 64
    for other in (engines - 1, engines + 1):
        assert LARGE.together(engines, ranks) >= LARGE.together(other, 64 - 8 * other)
    assert FOUR.split(1) == LARGE.split(8) == (0, 0)


def test_the_page_names_every_rate_that_can_be_assumed() -> None:
    named = set(re.findall(r"^\| `([a-z_]+)`", PAGE, re.MULTILINE))
    assert named == set(Scenario.model_fields)
