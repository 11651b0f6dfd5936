"""What the environment says of limits and waits, and what it cannot say."""

import pytest

from deepspec.errors import SpecError
from deepspec.placement import STAGING_LIMIT
from flows.choices import choose_site
from infra.settings import default_root, named_root, patience, staging_limit


def test_limits_and_waits_are_those_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (staging_limit(), patience()) == (STAGING_LIMIT, None)
    monkeypatch.setenv("DEEPSPEC_STAGING_GB", "0.5")
    monkeypatch.setenv("DEEPSPEC_PATIENCE_SECONDS", "1800")
    placement = choose_site("store").placement
    assert (placement.staging_limit, placement.patience) == (500_000_000, 1800.0)


@pytest.mark.parametrize("told", ["much", "0", "-1", "nan", "inf", ""])
def test_what_is_no_number_above_zero_is_one_line(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("DEEPSPEC_PATIENCE_SECONDS", told)
    monkeypatch.setenv("DEEPSPEC_STAGING_GB", told)
    with pytest.raises(SpecError, match=rf"DEEPSPEC_PATIENCE_SECONDS is '{told}'; wanted a number of seconds above 0"):
        patience()
    with pytest.raises(SpecError, match=rf"DEEPSPEC_STAGING_GB is '{told}'; wanted a number of gigabytes above 0"):
        staging_limit()


def test_a_root_that_is_named_as_nothing_is_not_the_default() -> None:
    """A script whose variable was never set would show, or delete, what lies in another store."""
    assert named_root("store") == "store"
    assert named_root(None) == default_root()
    with pytest.raises(SpecError, match="--root is empty"):
        named_root("")
