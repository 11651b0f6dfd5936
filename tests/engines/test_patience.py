"""How long is waited, and how that is said."""

from datetime import datetime

import pytest

from deepspec.engines.patience import PATIENCE_SECONDS, Patience, longest_wait, until
from deepspec.placement import Endpoint


def test_only_time_without_work_is_summed_up() -> None:
    patience = Patience()
    patience.look(10.0, idle=True)
    patience.look(70.0, idle=False)  # a minute of nothing, then an hour of work
    patience.look(3670.0, idle=True)
    assert patience.spent(3680.0) == 60 + 10
    patience.look(3700.0, idle=True)
    assert patience.spent(3700.0) == 60 + 30


def test_an_answer_sets_it_back() -> None:
    patience = Patience()
    patience.look(0.0, idle=True)
    patience.look(500.0, idle=False)
    patience.answered()
    patience.look(600.0, idle=True)
    assert patience.spent(650.0) == 50


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(60, "23:11"), (49 * 60 + 59, "23:59"), (50 * 60, "2026-11-27 00:00"), (31 * 86400, "2026-12-27 23:10")],
)
def test_a_time_of_another_day_is_told_with_its_date(seconds: int, told: str) -> None:
    assert until(seconds, datetime(2026, 11, 26, 23, 10)) == told


def test_a_run_waits_as_long_as_it_is_told_and_for_its_own_engines_in_any_case() -> None:
    given = Endpoint(url="http://a/v1", model="m")
    own = given.model_copy(update={"start_seconds": 1800.0})
    assert longest_wait([given]) == PATIENCE_SECONDS
    assert [longest_wait([given], told) for told in (5.0, 7200.0)] == [5.0, 7200.0]
    assert [longest_wait([given, own], told) for told in (5.0, 7200.0)] == [1800.0, 7200.0]
