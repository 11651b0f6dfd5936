from dataclasses import replace

import pytest

from deepspec.errors import ParityError
from deepspec.records.batch import Record
from deepspec.target_cache.cache import TargetCache
from deepspec.train.checked import check_states
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site
from tests.given.some import some


@pytest.fixture
def stored(site: Site) -> TargetCache:
    return TargetCache(site.cache, site.placement.scratch)


def test_states_that_the_target_says_now_may_be_trained_on(site: Site, stored: TargetCache) -> None:
    assert some(check_states(site.cache, stored, [0, 1, 2], site.placement)) < 0.01
    report = Heard()
    site.train(SMALL.but(steps=1, parity_samples=2), "gated", report)
    assert any("the cache agrees with its target: 2 samples" in line for line in report.lines)


@pytest.mark.parametrize("damage", ["shifted by a token", "another sample's", "another layer's", "scaled"])
def test_other_states_are_refused_before_the_first_step(
    site: Site, stored: TargetCache, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = stored.record

    def spoilt(number: int) -> Record:
        record = read(number)
        hidden = record.hidden
        if damage == "shifted by a token":
            return replace(record, hidden=hidden.roll(1, 0))
        if damage == "another sample's":
            return replace(record, hidden=read(number + 1).hidden.repeat(9, 1)[: len(hidden)])
        if damage == "another layer's":
            return replace(record, hidden=hidden.roll(hidden.shape[1] // 3, 1))
        return replace(record, last_hidden=record.last_hidden * 1.05)

    monkeypatch.setattr(stored, "record", spoilt)
    with pytest.raises(ParityError, match=r"the stored states of sample s\d+ differ from the target's own by"):
        check_states(site.cache, stored, [0], site.placement)
