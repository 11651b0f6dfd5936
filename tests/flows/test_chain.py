"""A published cache, named as `dataset.cache`, stands in for the stages before it."""

from pathlib import Path

import pytest

from deepspec.errors import SpecError
from deepspec.store import Store
from flows.chain import Chain
from infra.work import Site
from tests.cache.made import build, publish_answers, rows, spec_for
from tests.target.tiny import write_target


def test_a_named_cache_is_trained_on_and_nothing_before_it_is_made(tmp_path: Path):
    store, target = Store(tmp_path / "store"), write_target(tmp_path / "target")
    ref = build(spec_for(target), target, publish_answers(store, tmp_path, [rows(4)]), store, tmp_path)
    site = Site(root=store.root)
    for name in ("target_cache/c", "c"):
        chain = Chain({}, site, name)
        assert chain.cache() == chain.published("cache") == ref
        assert chain.steps == []
    with pytest.raises(SpecError, match="answers/a is of kind answers; wanted target_cache"):
        Chain({}, site, "answers/a").cache()
