"""A published cache or draft that a plan names stands in for the stages before it."""

from pathlib import Path

import pytest

from deepspec.errors import SpecError
from deepspec.store import Store
from flows.chain import Chain
from infra.site import Site
from tests.cache.made import build, publish_answers, rows, spec_for
from tests.evaluate.published import given
from tests.target.tiny import write_target


def test_a_named_cache_is_trained_on_and_nothing_before_it_is_made(tmp_path: Path):
    store, target = Store(tmp_path / "store"), write_target(tmp_path / "target")
    ref = build(spec_for(target), target, publish_answers(store, tmp_path, [rows(4)]), store, tmp_path)
    site = Site(root=store.root)
    for name in ("target_cache/c", "c"):
        chain = Chain({}, site, {"cache": name})
        assert chain.cache() == chain.published("cache") == ref
        assert chain.steps == []
    with pytest.raises(SpecError, match="answers/a is of kind answers; wanted target_cache"):
        Chain({}, site, {"cache": "answers/a"}).cache()


def test_a_named_draft_is_measured_and_nothing_is_trained(tmp_path: Path):
    draft = given(tmp_path).draft
    chain = Chain({}, Site(root=draft.store.root), {"cache": None, "train": "draft/a"})
    assert chain.draft() == chain.published("train") == draft.ref
    assert chain.steps == []
