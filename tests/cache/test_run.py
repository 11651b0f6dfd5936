"""Capture end to end on a tiny target."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.artifacts import open_artifact
from deepspec.asking.sampling import Sampling
from deepspec.cache import run as stage
from deepspec.cache.capture import Capture
from deepspec.errors import CaptureError, SourceError, TargetError
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.store import Store
from deepspec.target.load import load_target
from deepspec.target_cache.facts import Sampled, sampled_as
from deepspec.target_cache.kinds import read_kinds
from tests.given.heard import Heard
from tests.given.published.caches import (
    StopError,
    Stopping,
    build,
    opened,
    out_for,
    placement_for,
    publish_answers,
    rows,
    spec_for,
)
from tests.given.targets.tiny import END_OF_TEXT, IM_END, answered, write_target


@pytest.mark.parametrize(("codec", "tolerance"), [("bf16", 0.0), ("bf16-zstd", 0.0), ("fp8", 0.07)])
def test_every_record_is_what_the_target_computes(
    target: Path, store: Store, tmp_path: Path, codec: str, tolerance: float
) -> None:
    answers = publish_answers(store, tmp_path, [rows(10), rows(9, seed=1)])
    cache = opened(build(spec_for(target, codec=codec), target, answers, store, tmp_path), store, tmp_path)
    model = load_target(target)
    assert len(cache) == 19
    for number in range(19):
        record = cache.record(number)
        hidden, last = (t[0].bfloat16() for t in model.capture(record.input_ids[None], [-1, 1, 3]))
        near = torch.tensor([bool(record.loss_mask[max(p - 1, 0) : p + 2].any()) for p in range(len(last))])
        assert record.hidden.dtype == record.last_hidden.dtype == torch.bfloat16
        torch.testing.assert_close(record.hidden, hidden, rtol=tolerance + 0.01, atol=tolerance + 1e-3)
        torch.testing.assert_close(record.last_hidden, last[near], rtol=tolerance + 0.01, atol=tolerance + 1e-3)


def test_manifest_tells_training_all_it_needs(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(10)])
    spec = spec_for(target)
    ref = build(spec, target, answers, store, tmp_path)
    facts = opened(ref, store, tmp_path).facts
    assert facts.target == spec.target
    assert (facts.layers, facts.num_layers, facts.hidden_size, facts.vocab_size) == ((-1, 1, 3), 6, 32, 264)
    assert (facts.mask_token_id, facts.dtype, facts.codec) == (260, "float32", "bf16-zstd")
    assert {name: counts.samples for name, counts in facts.splits.items()} == {"train": 8, "validation": 2}
    assert facts.stored_bytes == sum(
        entry.size for name, entry in open_artifact(store, ref, tmp_path).manifest.files.items() if "part" in name
    )


def test_manifest_tells_how_answers_were_sampled_and_end_and_a_file_of_which_kind_the_held_out_are(
    target: Path, store: Store, tmp_path: Path
) -> None:
    some = [{**row, "source": f"kind {number % 2}"} for number, row in enumerate(rows(10))]
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20)
    spec = RegenerateSpec(target=spec_for(target).target, sampling=sampling)
    answers = publish_answers(store, tmp_path, [some[:5], some[5:]], spec=spec)
    ref = build(spec_for(target), target, answers, store, tmp_path)
    facts = opened(ref, store, tmp_path).facts
    assert facts.stop_ids == (IM_END, END_OF_TEXT)
    assert facts.sampled == Sampled(temperature=0.7, top_p=0.8, top_k=20)
    assert read_kinds(open_artifact(store, ref, tmp_path)) == {"s004": "kind 0", "s009": "kind 1"}


@pytest.mark.parametrize("changes", [{"answers": "xxh3:0"}, {"sampling": Sampling(presence_penalty=1.5)}])
def test_of_answers_that_were_brought_or_penalised_no_distribution_is_told(
    target: Path, changes: dict[str, Any]
) -> None:
    spec = RegenerateSpec(target=spec_for(target).target, **changes)
    assert sampled_as(spec.model_dump(mode="json")) is None
    assert sampled_as({}) is None


def test_parts_of_an_earlier_release_that_tell_no_end_tokens_fit_beside_others(
    target: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = publish_answers(store, tmp_path, [rows(4), rows(4, seed=1)])
    spec, real = spec_for(target), vars(Capture)["facts"].func
    out, place = out_for(store, tmp_path, answers), placement_for(target, tmp_path)
    told: dict[str, Any] = {"inputs": {"answers": answers}, "out": out}
    monkeypatch.setattr(
        Capture, "facts", property(lambda self: {k: v for k, v in real(self).items() if k != "stop_ids"})
    )
    stage.run_shard(0, spec, **told, placement=place, report=Heard())
    monkeypatch.undo()
    stage.run_shard(1, spec, **told, placement=place, report=Heard())
    assert stage.finish(spec, **told, report=Heard())["stop_ids"] == [IM_END, END_OF_TEXT]


def test_every_row_is_accounted_for(target: Path, store: Store, tmp_path: Path) -> None:
    some = [
        answered("kept", "hi", "hello there"),
        answered("short", "hi", ""),
        answered("held", "hi", "hello", split="test"),
        answered("failed", "hi", "", status="error"),
        answered("cut", "hi", "one two", finish_reasons=["length"]),
        answered("long", "hi", "x" * 200),
    ]
    answers = publish_answers(store, tmp_path, [some])
    ref = build(spec_for(target, max_length=100), target, answers, store, tmp_path)
    counted = open_artifact(store, ref, tmp_path).counts["rows"]
    assert {key: counted[key] for key in counted if key != "rendered_tokens"} == {
        "rows": 6,
        "rows_kept": 3,
        "samples": 3,
        "other_split": 1,
        "status_error": 1,
        "dropped_too_few_supervised": 1,
        "turns": 4,
        "truncated_turns": 1,
        "drifted_turns": 0,
        "cut_samples": 1,
        "date_assumed": 0,
    }


def test_nothing_is_stored_after_the_last_supervised_token(target: Path, store: Store, tmp_path: Path) -> None:
    row = answered("a", "hi", "yes", "and", "x" * 300)
    answers = publish_answers(store, tmp_path, [[row]])
    cache = opened(build(spec_for(target, max_length=35), target, answers, store, tmp_path), store, tmp_path)
    record = cache.record(0)
    assert len(record.input_ids) == 10 + 11 + 4  # user turn, generation prompt, answer: the cut fell into the next turn
    assert record.loss_mask[-1]


def test_a_long_conversation_may_be_cut_anywhere(target: Path, store: Store, tmp_path: Path) -> None:
    said = "".join(f"{n:03d}" for n in range(60))
    answers = publish_answers(store, tmp_path, [[answered(str(n), "hi", said) for n in range(8)]])
    other = Store(tmp_path / "other")
    whole = opened(build(spec_for(target), target, answers, other, tmp_path / "whole"), other, tmp_path)
    ref = build(spec_for(target, max_length=50, cut="anywhere"), target, answers, store, tmp_path)
    cache = opened(ref, store, tmp_path)
    text, starts = whole.record(0).input_ids.tolist(), set()
    for number in range(len(cache)):
        record = cache.record(number)
        ids, first = record.input_ids.tolist(), bool(record.loss_mask[0])
        starts |= {start for start in range(len(text)) if text[start : start + len(ids)] == ids}
        assert len(ids) <= 50
        assert not first
    assert len(starts) > 2


def test_a_stopped_run_goes_on_where_it_was(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(20)])
    spec = spec_for(target, part_bytes=60_000)
    whole = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "undisturbed")

    out = out_for(store, tmp_path, answers)
    with pytest.raises(StopError):
        stage.run(spec, {"answers": answers}, out, placement_for(target, tmp_path), Stopping())
    kept = {mark.files[name].key for mark in out.parts() for name in mark.files}
    assert kept
    resumed = build(spec, target, answers, store, tmp_path)
    manifest = open_artifact(store, resumed, tmp_path).manifest
    assert kept < {entry.key for entry in manifest.files.values()}
    assert resumed.content == whole.content


def test_shards_may_be_captured_in_any_order_by_anyone(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(6), rows(7, seed=1), rows(5, seed=2)])
    spec = spec_for(target)
    whole = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "undisturbed")
    inputs, placement = {"answers": answers}, placement_for(target, tmp_path)
    assert stage.shards(spec, inputs, out_for(store, tmp_path, answers), placement, Heard()) == 3
    for shard in (2, 0, 2, 1):
        stage.run_shard(shard, spec, inputs, out_for(store, tmp_path, answers), placement, Heard())
    out = out_for(store, tmp_path, answers)
    assert out.publish(spec, 1, stage.finish(spec, inputs, out, Heard())).content == whole.content


def test_parts_follow_the_answers_and_a_part_its_lengths(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(20)])
    index = opened(build(spec_for(target, part_bytes=60_000), target, answers, store, tmp_path), store, tmp_path).index
    parts: dict[int, list[tuple[int, str]]] = {}
    for number, part in enumerate(index.parts.tolist()):
        parts.setdefault(part, []).append((-int(index.lengths[number]), index.sample_id(number)))
    assert len(parts) > 2
    assert list(parts) == sorted(parts)
    found = [sample_id for part in parts.values() for sample_id in sorted(name for _, name in part)]
    assert found == [f"s{n:03d}" for n in range(20)]
    assert all(part == sorted(part) for part in parts.values())


def test_an_unfinished_shard_is_named(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(6), rows(7, seed=1)])
    inputs, placement = {"answers": answers}, placement_for(target, tmp_path)
    spec, out = spec_for(target), out_for(store, tmp_path, answers)
    stage.run_shard(0, spec, inputs, out, placement, Heard())
    with pytest.raises(CaptureError, match=r"shards \[1\] of the target cache are not complete"):
        stage.finish(spec, inputs, out, Heard())


def test_nan_stops_with_sample_and_layer(
    target: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = publish_answers(store, tmp_path, [rows(6)])
    captured = load_target(target).__class__.capture

    def broken(self: object, ids: torch.Tensor, layers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, last = captured(self, ids, layers)  # type: ignore[arg-type]
        hidden[0, 2, 40] = float("nan")
        return hidden, last

    monkeypatch.setattr("deepspec.target.load.Target.capture", broken)
    out = out_for(store, tmp_path, answers)
    with pytest.raises(CaptureError, match=r"sample s00\d: the output of target layer 1 holds NaN"):
        stage.run(spec_for(target), {"answers": answers}, out, placement_for(target, tmp_path), Heard())
    assert out.parts() == []


def test_a_target_that_changed_since_the_plan_is_refused(store: Store, target: Path, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [rows(3)])
    spec = spec_for(target)
    other = write_target(tmp_path / "other", seed=1)
    placement = placement_for(target, tmp_path).model_copy(update={"locations": {spec.target.digest: str(other)}})
    with pytest.raises(TargetError, match="has changed since"):
        stage.run(spec, {"answers": answers}, out_for(store, tmp_path, answers), placement, Heard())


def test_answers_without_a_usable_row_are_an_error(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [[answered("a", "hi", "", status="error")]])
    with pytest.raises(SourceError, match=r"no sample of the answers can be trained on: .*status_error"):
        build(spec_for(target), target, answers, store, tmp_path)


def test_savings_are_reported_step_by_step(target: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [[answered("a", "12345678", "abcd")]])
    report = Heard()
    out = out_for(store, tmp_path, answers)
    counts = stage.run(
        spec_for(target, codec="bf16"), {"answers": answers}, out, placement_for(target, tmp_path), report
    )
    # 16 tokens of the user's turn, 11 of the generation prompt, 5 answered: 32 tokens of (3+1)*32*2 + 6 bytes
    assert counts["published_bytes"] == 32 * (256 + 6)
    # all layers of 32 tokens, the last state of 5 answered tokens and the one before, 5 bytes a token
    assert counts["raw_bytes"] == 32 * 192 + 6 * 64 + 32 * 5
    assert counts["stored_bytes"] == counts["raw_bytes"] + 4096
    assert [row["bytes"] for row in report.tables["target-cache"]] == [
        counts[key] for key in ("published_bytes", "all_positions_bytes", "raw_bytes", "stored_bytes")
    ]
