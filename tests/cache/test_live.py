"""Training without stored states: the same samples in the same order, computed when they are needed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.artifacts import Artifact, open_artifact
from deepspec.errors import SpecError, TargetError
from deepspec.passes.live import StatesSource, open_cache
from deepspec.records.batch import Record
from deepspec.store import Store
from tests.given.published.caches import build, held, placement_for, publish_answers, rows, spec_for
from tests.given.targets.tiny import write_target


@pytest.fixture
def caches(target: Path, store: Store, tmp_path: Path) -> dict[str, Artifact]:
    """The same answers as a cache of raw states and as one of tokens only."""

    def made(codec: str) -> Artifact:
        root = Store(tmp_path / codec)
        answers = publish_answers(root, tmp_path, [rows(14), rows(10, seed=1)])
        ref = build(spec_for(target, codec=codec, part_bytes=60_000), target, answers, root, tmp_path / codec)
        return open_artifact(root, ref, tmp_path / codec)

    return {codec: made(codec) for codec in ("bf16", "none")}


def records(artifact: Artifact, target: Path, scratch: Path, source: StatesSource, **options: Any) -> list[Record]:
    cache = open_cache(artifact, placement_for(target, scratch), source, **options)
    return list(cache.stream(cache.order("train", seed=3, epoch=1, window=2)))


def test_tokens_only_takes_next_to_nothing(caches: dict[str, Artifact]) -> None:
    assert caches["none"].counts["stored_bytes"] < caches["bf16"].counts["stored_bytes"] / 5
    told = {"samples", "tokens", "supervised", "splits", "layers", "raw_bytes"}
    assert {key: caches["none"].counts[key] for key in told} == {key: caches["bf16"].counts[key] for key in told}


def test_rolling_gives_the_very_bytes_of_a_cache(caches: dict[str, Artifact], target: Path, tmp_path: Path) -> None:
    stored = records(caches["bf16"], target, tmp_path, "cache")
    rolling = records(caches["none"], target, tmp_path, "rolling")
    assert [record.sample_id for record in rolling] == [record.sample_id for record in stored]
    for one, other in zip(rolling, stored, strict=True):
        assert torch.equal(one.hidden, other.hidden)
        assert torch.equal(one.last_hidden, other.last_hidden)


def test_rolling_keeps_its_bound(caches: dict[str, Artifact], target: Path, tmp_path: Path) -> None:
    limit = 150_000
    cache = open_cache(caches["none"], placement_for(target, tmp_path, parts_limit=limit), "rolling")
    largest = 0
    for _ in cache.stream(cache.order("train", seed=0, epoch=0, window=1)):
        largest = max(largest, held(tmp_path / "rolling"))
    assert 0 < largest <= limit


def test_online_agrees_to_rounding(caches: dict[str, Artifact], target: Path, tmp_path: Path) -> None:
    stored = records(caches["bf16"], target, tmp_path, "cache")
    online = records(caches["none"], target, tmp_path, "online")
    for one, other in zip(online, stored, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.loss_mask, other.loss_mask)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0.01, atol=1e-3)
        torch.testing.assert_close(one.last_hidden, other.last_hidden, rtol=0.01, atol=1e-3)


def test_tokens_only_needs_a_source(caches: dict[str, Artifact], target: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds tokens only; set train"):
        open_cache(caches["none"], placement_for(target, tmp_path))


def test_another_target_is_refused(caches: dict[str, Artifact], target: Path, tmp_path: Path) -> None:
    placement = placement_for(target, tmp_path)
    (digest,) = placement.locations
    other = placement.model_copy(update={"locations": {digest: str(write_target(tmp_path / "other", seed=1))}})
    with pytest.raises(TargetError, match="has changed since"):
        open_cache(caches["none"], other, "online")
