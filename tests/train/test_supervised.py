"""A split that supervises nothing ends training before the first step, not after the last."""

import numpy as np
import pytest

from deepspec.errors import SourceError
from deepspec.target_cache.cache import TargetCache
from deepspec.train.checked import check_supervised
from tests.given.published.site import SMALL, Site


def emptied(cache: TargetCache, split: str) -> TargetCache:
    """Let the index of a cache say that a split supervises nothing."""
    column = cache.index._columns["supervised"].copy()
    column[cache.numbers(split)] = 0
    cache.index._columns["supervised"] = column
    return cache


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_that_supervises_nothing_is_refused(site: Site, split: str) -> None:
    whole = TargetCache(site.cache, site.placement.scratch)
    check_supervised(whole, "train", "validation", "test")
    assert int(whole.index.supervised.sum()) == site.cache.counts["supervised"]
    cache = emptied(whole, split)
    other = {"train", "validation"} - {split}
    check_supervised(cache, *other)
    with pytest.raises(SourceError, match=f"the cache's {split} split supervises nothing: none of its"):
        check_supervised(cache, "train", "validation")


def test_training_refuses_it_before_the_first_step(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.target_cache.index.Index.supervised", property(lambda self: np.zeros(len(self), int)))
    with pytest.raises(SourceError, match="the cache's train split supervises nothing"):
        site.train(SMALL, "nothing")
    assert not [key for key in site.store.list("draft/nothing") if key.endswith("manifest.json")]
