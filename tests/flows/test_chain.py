"""A published cache or draft that a plan names stands in for the stages before it."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepspec.errors import SpecError
from deepspec.store import Store
from flows.chain import Chain, processor_seconds
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


def test_what_a_child_and_its_own_child_computed_is_counted():
    """Each computes until its own clock of the processor says a tenth of a second."""
    computes = "import time\nwhile time.process_time() < 0.1: pass"
    before = processor_seconds()
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {computes!r}], check=True)\n{computes}"
    subprocess.run([sys.executable, "-c", nested], check=True)
    assert processor_seconds() - before >= 0.2
