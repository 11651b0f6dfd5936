"""Training on states as an engine makes them, end to end over a small server that speaks as vLLM does."""

from typing import Any

import pytest

from deepspec.artifacts import open_artifact, read_manifest
from deepspec.errors import EngineError, SpecError, TrainingError
from deepspec.train.loop import Loop
from tests.given.engines.bench import Bench
from tests.given.engines.states import Served, serving
from tests.given.engines.training import SPEC, checksums, tokens_of, train
from tests.given.heard import Heard
from tests.given.published.caches import publish_answers, rows


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Answers whose ids differ from file to file."""
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    return bench


def trained(bench: Bench, *engines: Served, spec: Any = SPEC, name: str = "draft", **placed: Any) -> dict[str, str]:
    """Train, and return the checksums of what was published."""
    asked = [each.endpoint for each in engines]
    args = (bench.store, bench.folder, tokens_of(bench), bench.target, spec, bench.heard)
    return checksums(train(*args, *asked, name=name, **placed), bench.store, bench.folder)


def test_states_as_they_are_made_train_the_very_draft_that_a_cache_of_them_trains(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        cache = open_artifact(bench.store, bench.run(engine), bench.folder)
        spec = SPEC.but(source="cache", engine_version=None)
        stored = train(bench.store, bench.folder, cache, bench.target, spec, Heard(), name="stored")
        live = trained(bench, engine)
    assert live == checksums(stored, bench.store, bench.folder)
    assert bench.left() == []


def test_engines_that_fail_and_die_and_a_narrow_queue_change_no_byte(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        whole = trained(bench, engine, name="whole")
    with serving(bench.served()) as well, serving(bench.served(dies_at=9)) as sick:
        well.fail_at = {6, 7, 15}
        narrow = trained(bench, well, sick, name="narrow", staging_limit=150 * 4 * 32 * 4)
    assert narrow == whole
    assert len(sick.asked) >= 9


def test_every_sample_is_asked_for_each_time_that_it_is_read(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        trained(bench, engine)
    steps, looks, begin, probes = 8 * 4, 3 * 3, 16, 3  # the draft begins with the bigrams of all that it trains on
    assert len(engine.asked) == steps + looks + begin + probes
    assert any("samples asked for, 0 read from those kept" in line for line in bench.heard.lines)


def test_a_fitted_start_asks_for_no_sample_twice(bench: Bench) -> None:
    """The block is fitted to the samples that the bigrams are of."""
    with serving(bench.served()) as engine:
        trained(bench, engine, spec=SPEC.but(start="fitted"))
    steps, looks, begin, probes = 8 * 4, 3 * 3, 16, 3
    assert len(engine.asked) == steps + looks + begin + probes


def test_a_draft_that_begins_with_earlier_weights_asks_for_no_start(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        trained(bench, engine, name="first")
        before = len(engine.asked)
        trained(bench, engine, name="second", spec=SPEC.but(warm_start="first"))
    steps, looks, probes = 8 * 4, 3 * 3, 3
    assert len(engine.asked) - before == steps + looks + probes


def test_a_run_that_dies_before_its_first_saved_step_asks_for_no_start_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Loop._count
    with serving(bench.served()) as engine:
        whole = trained(bench, engine, name="whole")
        monkeypatch.setattr(Loop, "_count", _dying)
        with pytest.raises(OSError, match="gone"):
            trained(bench, engine, name="broken")
        monkeypatch.setattr(Loop, "_count", count)
    with serving(bench.served()) as engine:  # another one: what the dead run asked for may still come in at the first
        assert trained(bench, engine, name="broken") == whole
    steps, looks, probes = 8 * 4, 3 * 3, 3
    assert len(engine.asked) == steps + looks + probes


def _dying(*_: Any, **__: Any) -> None:
    raise OSError("gone")


def test_kept_states_are_asked_for_once_and_train_the_same_draft(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        plain = trained(bench, engine, name="plain")
        before = len(engine.asked)
        kept = trained(bench, engine, name="kept", spec=SPEC.but(keep_states="1GB"))
    assert kept == plain
    assert len(engine.asked) - before == 19 + 3
    assert not list((bench.folder / "draft" / "kept").rglob("*.safetensors"))  # gone with the work that made it


def test_an_engine_of_other_layers_trains_nothing(bench: Bench) -> None:
    with (
        serving(bench.served(shift=1)) as engine,
        pytest.raises(EngineError, match=r"nearer to layer 0 of the target"),
    ):
        trained(bench, engine)
    assert read_manifest(bench.store, "draft", "draft") is None


def test_states_that_are_wrong_after_the_first_ones_end_the_run_and_name_the_sample(bench: Bench) -> None:
    with (
        serving(bench.served(told_later=(12, {"model": "0" * 32}))) as engine,
        pytest.raises(TrainingError, match=r"sample s\d+: .*its weights have changed since"),
    ):
        trained(bench, engine)


def test_no_engine_and_no_version_are_one_line(bench: Bench) -> None:
    with pytest.raises(EngineError, match=r"no engine to ask; give --endpoint URL"):
        trained(bench)
    with pytest.raises(SpecError, match=r"train\.engine_version"), serving(bench.served()) as engine:
        trained(bench, engine, spec=SPEC.but(engine_version=None))
