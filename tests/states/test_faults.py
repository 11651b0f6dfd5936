"""Engines that give other states than are wanted, and engines that give none: one line each, and nothing published."""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from deepspec.artifacts import read_manifest
from deepspec.errors import CaptureError, EngineError
from deepspec.states import staging
from deepspec.target.load import load_target
from tests.given.engines.bench import Bench
from tests.given.engines.states import Served, serving
from tests.given.heard import Heard
from tests.given.published.caches import StopError, Stopping
from tests.given.targets.tiny import write_target


def refused(bench: Bench, match: str, error: type[Exception] = EngineError, **faults: object) -> Served:
    """Capture from an engine with faults; the error is one line, and nothing is published or left."""
    with serving(bench.served(**faults)) as engine:
        with pytest.raises(error, match=match) as raised:
            bench.run(engine)
        assert "\n" not in str(raised.value)
    assert read_manifest(bench.store, "target_cache", "c") is None
    assert not list((bench.folder / "store").rglob("*part-*.safetensors"))
    return engine


def test_layers_shifted_by_one_are_seen_against_the_target(bench: Bench) -> None:
    # the last of the four stays the last: all that the engine can be held against by itself is right
    refused(bench, r"gives as layer -1 is nearer to layer 0 of the target", shift=1)


def test_a_last_state_that_was_normed_already_is_seen_without_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    target = write_target(tmp_path / "normed")
    changed(target, lambda model: model.model.norm.weight.uniform_(0.5, 2.0))  # of ones alone, twice is once
    refused(Bench(target, tmp_path), r"off by .* nats from those that it tells itself", norm=True)


def test_weights_other_than_those_told_are_seen(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.states.proof.Proof.of_engine", lambda *_: None)
    other = write_target(tmp_path / "other", seed=1)
    refused(bench, r"layer -1 is off by|is nearer to layer", weights=other)


def test_a_head_other_than_the_targets_is_seen_without_the_target(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    other = write_target(tmp_path / "other", seed=1)
    refused(bench, r"nats from those that it tells itself", weights=other)


def test_one_layer_with_other_weights_is_seen(bench: Bench, tmp_path: Path) -> None:
    other = write_target(tmp_path / "other")
    changed(other, lambda model: model.model.layers[2].mlp.down_proj.weight.mul_(3))
    refused(bench, r"layer 3 is off by", weights=other)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"model": "0" * 32}, r"another model than the target .* engine-args"),
        ({"dtype": "bfloat16"}, r"computes in bfloat16, wanted float32; .* engine-args"),
        ({"layer_ids": "0,2,5,6"}, r"gives layers 0,2,5,6 \(as it counts\), wanted 0,2,4,6"),
        ({"engine_version": "0.33.0"}, r"is version 0\.33\.0, the cache is made of states of version 0\.32\.0"),
        ({"quantization": "fp8"}, r"quantised as fp8, wanted ''; set cache\.engine_quantization"),
        ({"format": "other"}, r"another connector than ours; .* engine-args"),
    ],
)
def test_what_an_engine_says_of_its_states_is_believed_and_held(bench: Bench, told: dict[str, str], match: str) -> None:
    engine = refused(bench, match, told=told)
    assert len(engine.asked) == 1  # the first prompt of the proof is enough
    assert bench.left() == []


def test_an_engine_without_the_connector(bench: Bench) -> None:
    refused(bench, r"answers and gives no states; start it with what `deepspec engine-args` prints", connector=False)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        ("ids", r"of other token ids than were asked for"),
        ("shape", r"the states are \(\d+, 3, 32\), wanted \(\d+, 4, 32\)"),
        ("bytes", r"does not match its own checksum"),
        ("cast", r"the states are torch\.bfloat16, wanted float32"),
        ("full", r"is full; free it, or lower DEEPSPEC_STAGING_GB"),
    ],
)
def test_files_that_are_not_what_was_asked_for(bench: Bench, spoil: str, match: str) -> None:
    refused(bench, match, spoil=spoil)
    assert bench.left() == []


def test_a_state_that_is_not_finite_names_sample_and_layer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.states.proof.Proof.of_target", lambda *_: None)
    refused(bench, r"sample s\d+: the output of target layer 1 holds NaN", error=CaptureError, spoil="nan")


def test_a_folder_that_only_the_engine_sees(bench: Bench) -> None:
    refused(bench, r"is not here: it runs on another machine .* engine-args --staging FOLDER", lock="none")


def test_a_lock_that_is_free_without_a_file(bench: Bench) -> None:
    refused(bench, r"its writer died before the file was whole; see its log", lock="dead")


def test_a_lock_that_never_frees(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.states.file.LOCK_SECONDS", 0.05)
    refused(bench, r"its writer has held a lock for 0\.05 s, and hangs; see its log", lock="held")


def test_files_of_another_user(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = Path.open

    def closed(self: Path, *args: object, **kwargs: object) -> Any:
        if self.name.endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", closed)
    refused(bench, r"a user whose files this one may not read and delete; run both as one user or group")


def test_a_file_that_is_not_of_the_request_is_never_touched(bench: Bench) -> None:
    precious = bench.folder / "precious.safetensors"
    precious.write_bytes(b"x")
    with serving(bench.served()) as engine:
        engine.redirect = str(precious)
        with pytest.raises(EngineError, match=r"wanted an absolute path with the request's name in it"):
            bench.run(engine)
    assert precious.read_bytes() == b"x"


def test_an_engine_that_is_not_there(bench: Bench) -> None:
    gone = bench.served()
    with serving(gone):
        pass
    with pytest.raises(EngineError, match=r"no engine gives states .*; start one, or check the URL"):
        bench.run(gone)


def test_no_engine_at_all(bench: Bench) -> None:
    with pytest.raises(EngineError, match=r"no engine to ask; give --endpoint URL"):
        bench.run()


def test_a_sample_that_is_longer_than_the_engine_takes_ends_the_run_and_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.given.engines.states.LONGEST", 60)
    refused(bench, r"(refuses what it is asked|no engine gives states of sample s\d+ ).*longer than 60 .*engine-args")


def test_a_sample_that_no_staging_folder_holds(bench: Bench) -> None:
    with (
        serving(bench.served()) as engine,
        pytest.raises(EngineError, match=r"takes [\d,]+ bytes of states, more than"),
    ):
        bench.run(engine, staging_limit=1000)


@pytest.mark.parametrize("samples", [1, 3])
def test_states_that_are_asked_for_keep_the_limit(bench: Bench, samples: int) -> None:
    limit = samples * 150 * 4 * 32 * 4  # no sample is longer than 150 tokens
    with serving(bench.served()) as engine:
        bench.run(engine, staging_limit=limit)
        assert len(engine.asked) == 19 + 3
        assert limit / 3 < engine.most_bytes <= limit


def test_requests_that_fail_are_asked_again(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        engine.fail_at = {6, 7, 11}
        assert len(bench.opened(bench.run(engine))) == 19


def test_an_engine_that_is_lost_for_good_ends_the_run_and_what_was_committed_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.engines.patience.PATIENCE_SECONDS", 0.3)
    spec = bench.spec(part_bytes=20_000)
    with serving(bench.served()) as engine:
        engine.fail_at = set(range(14, 10_000))
        with pytest.raises(EngineError, match=r"no engine (gave|gives) states .*out of memory.* run again to go on"):
            bench.run(engine, spec=spec)
    with serving(bench.served()) as engine:
        assert len(bench.opened(bench.run(engine, spec=spec))) == 19
        assert len(engine.asked) < 19 + 3


def test_an_engine_of_the_runs_own_is_waited_for_as_long_as_it_may_take_to_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.engines.patience.PATIENCE_SECONDS", 0.3)
    with serving(bench.served()) as engine:
        engine.fail_at = set(range(14, 60))
        with pytest.raises(EngineError, match=r"no engine gave states for 0 s"):
            bench.run(engine)
        assert engine.requests < 60
    with serving(bench.served(start_seconds=600.0)) as engine:  # the same, as soon as it is proven
        engine.fail_at = set(range(5, 60))
        assert len(bench.opened(bench.run(engine))) == 19
    assert engine.requests > 60


def test_an_engine_that_is_started_by_hand_is_waited_for_as_long_as_is_said(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        engine.fail_at = set(range(14, 10_000))
        with pytest.raises(
            EngineError, match=r"no engine gave states for 0 s .* longer with DEEPSPEC_PATIENCE_SECONDS"
        ):
            bench.run(engine, patience=0.3)


def test_weights_that_change_under_a_run_end_it_and_what_was_committed_stays(bench: Bench) -> None:
    with serving(bench.served()) as engine:
        engine.told_later = (12, {"model": "1" * 32})
        with pytest.raises(EngineError, match=r"or its weights have changed since"):
            bench.run(engine, spec=bench.spec(part_bytes=20_000))
    committed = len(list((bench.folder / "store").rglob("parts/*/shard*.json")))
    assert committed > 0
    with serving(bench.served()) as engine:
        assert len(bench.opened(bench.run(engine, spec=bench.spec(part_bytes=20_000)))) == 19
        assert len(engine.asked) < 19 + 3


def test_a_run_that_ends_in_the_middle_goes_on_and_leaves_nothing(bench: Bench) -> None:
    bench.heard = Stopping()
    spec = bench.spec(part_bytes=20_000)
    with serving(bench.served()) as engine, pytest.raises(StopError):
        bench.run(engine, spec=spec)
    bench.heard = Heard()
    with serving(bench.served()) as engine:
        assert len(bench.opened(bench.run(engine, spec=spec))) == 19
        assert len(engine.asked) < 19 + 3
    assert bench.left() == []  # what the engine wrote for the first run, after its end, was swept by the second


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    old = time.time() - 2 * staging.YOUNG_SECONDS
    for name in (
        "deepspec-dead.run",
        "cmpl-deepspec-dead-3-0-ab.safetensors",
        "cmpl-deepspec-dead-3-0-ab.safetensors.lock",
    ):
        (tmp_path / name).touch()
    for name in ("deepspec-alive.run", "cmpl-deepspec-alive-1-0-ab.safetensors", "theirs.safetensors"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "cmpl-deepspec-young-1-0-ab.safetensors").touch()
    with (tmp_path / "deepspec-alive.run").open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert staging.sweep(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cmpl-deepspec-alive-1-0-ab.safetensors",
        "cmpl-deepspec-young-1-0-ab.safetensors",
        "deepspec-alive.run",
        "theirs.safetensors",
    ]


def test_a_target_that_does_not_fit_is_read_from_its_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    no_room(monkeypatch)
    given = bench.opened(bench.capture())
    model = load_target(bench.target)
    record = given.record(3)
    _, last = model.capture(record.input_ids[None], [1])
    near = torch.tensor([bool(record.loss_mask[max(p - 1, 0) : p + 2].any()) for p in range(len(record.input_ids))])
    torch.testing.assert_close(record.last_hidden, last[0].bfloat16()[near], rtol=0.01, atol=1e-3)
    assert any("does not fit into memory" in line for line in bench.heard.lines)


def changed(target: Path, change: Callable[[Any], object]) -> None:
    model = LlamaForCausalLM.from_pretrained(target)
    with torch.no_grad():
        change(model)
    model.save_pretrained(target)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.target.load._BESIDE", 1e18)
