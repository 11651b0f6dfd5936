"""The check of a published cache finds what is damaged, and what was never right."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact, open_artifact
from deepspec.cache.verify import verify_cache
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.totals import statistics
from tests.given.heard import Heard
from tests.given.published.caches import build, placement_for, publish_answers, rows, spec_for


def published(target: Path, store: Store, scratch: Path, **options: Any) -> Artifact:
    answers = publish_answers(store, scratch, [rows(10)])
    return open_artifact(store, build(spec_for(target, **options), target, answers, store, scratch), scratch)


@pytest.mark.parametrize("codec", ["bf16", "bf16-zstd", "fp8", "none"])
def test_a_sound_cache_is_sound(target: Path, store: Store, tmp_path: Path, codec: str) -> None:
    found = verify_cache(published(target, store, tmp_path, codec=codec), placement_for(target, tmp_path), Heard())
    assert found.sound
    assert found.samples == 10
    assert len(found.recomputed) == (0 if codec == "none" else 4)


def test_damage_is_listed_by_part_and_sample(target: Path, store: Store, tmp_path: Path) -> None:
    artifact = published(target, store, tmp_path)
    cache = TargetCache(artifact, tmp_path)
    name, row = cache.index.part_of(2), cache.index.row(2)
    path = Path(store.root, artifact.prefix, artifact.entry(name).key)
    data = bytearray(path.read_bytes())
    data[row["offset"]] ^= 1
    path.write_bytes(data)
    found = verify_cache(artifact, placement_for(target, tmp_path), Heard(), recompute=0)
    assert not found.sound
    (line,) = found.damaged
    assert name in line
    assert row["sample_id"] in line


def test_states_that_the_target_does_not_compute_are_wrong(target: Path, store: Store, tmp_path: Path) -> None:
    """A cache whose bytes are intact and whose layers were mixed up when it was written."""
    artifact = published(target, store, tmp_path, layers=(-1, 1, 3))
    artifact.manifest.counts["layers"] = [0, 1, 3]
    found = verify_cache(artifact, placement_for(target, tmp_path), Heard(), recompute=3)
    assert found.damaged == []
    assert len(found.wrong) == 3


def test_statistics_are_a_table(target: Path, store: Store, tmp_path: Path) -> None:
    artifact = published(target, store, tmp_path)
    table = statistics(artifact, TargetCache(artifact, tmp_path).index.lengths.tolist())
    assert {tuple(row) for row in table} == {("what", "value")}
    assert {"what": "hidden size", "value": 32} in table
