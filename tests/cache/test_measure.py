"""A plan whose answers exist says what will be written."""

from pathlib import Path

import pytest

from deepspec.artifacts import open_artifact
from deepspec.cache import measure as measuring
from deepspec.cache.measure import measure_answers
from deepspec.cache.spec import CacheOptions
from deepspec.store import Store
from deepspec.target.load import load_target, load_template
from deepspec.target_cache import sizes as cache_bytes
from deepspec.target_cache.sizes import HEADER, Captured, cache_size
from tests.given.published.caches import build, publish_answers, rows, spec_for
from tests.given.targets.tiny import HIDDEN, answered

MANY = [
    [*rows(40), answered("turns", "one", "two", "three", "four" * 9), answered("failed", "x", "", status="error")],
    [*rows(40, seed=1), answered("other", "x", "yes", split="test"), answered("long", "hi", "x" * 400)],
]


@pytest.mark.parametrize("codec", ["bf16", "bf16-zstd", "fp8", "none"])
def test_a_plan_with_answers_is_within_two_percent_of_what_is_written(
    target: Path, store: Store, tmp_path: Path, codec: str
) -> None:
    options = {"codec": codec, "layers": (-1, 1, 3), "max_length": 200, "part_bytes": 200_000}
    answers = publish_answers(store, tmp_path, MANY)
    told = measure_answers(answers, load_template(target), CacheOptions(**options), load_target(target))
    ref = build(spec_for(target, **options), target, answers, store, tmp_path)
    artifact = open_artifact(store, ref, tmp_path)
    counts = artifact.counts
    assert (told.samples, told.tokens.mid, told.supervised.mid) == tuple(
        counts[key] for key in ("samples", "tokens", "supervised")
    )
    assert told.tokens.low == told.tokens.high
    what = Captured(
        **told.model_dump(include={"samples", "tokens", "supervised", "last_rows"}),
        layers=3,
        hidden=HIDDEN,
        part_bytes=200_000,
    )
    ratios = {**cache_bytes.CODEC_RATIO, **told.ratios}
    written = sum(entry.size for entry in artifact.manifest.files.values())
    assert cache_size(what, ratios[codec]).bytes.mid == pytest.approx(written, rel=0.02)


def test_many_answers_are_sampled_and_told_with_an_interval(
    target: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = publish_answers(store, tmp_path, [rows(50, seed=seed) for seed in range(8)])
    whole = measure_answers(answers, load_template(target), CacheOptions(), None)
    monkeypatch.setattr(measuring, "FILES", 4)
    monkeypatch.setattr(measuring, "ROWS", 100)
    sampled = measure_answers(answers, load_template(target), CacheOptions(), None)
    assert (whole.rows, whole.samples, sampled.rows, sampled.samples) == (400, 400, 100, 400)
    assert sampled.tokens.low < whole.tokens.mid < sampled.tokens.high
    assert sampled.tokens.high - sampled.tokens.low < 0.2 * sampled.tokens.mid


def test_the_plan_knows_the_header_of_a_part() -> None:
    assert cache_bytes.HEADER == HEADER
