"""One bad row costs one row: it is counted by its reason, and only too many of them end the stage."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.artifacts import Artifact, open_artifact
from deepspec.cache import run as stage
from deepspec.cache.measure import measure_answers
from deepspec.cache.spec import CacheOptions
from deepspec.chat.template import ChatTemplate
from deepspec.errors import BadRowsError, SourceError, StoreError
from deepspec.passes.samples import read_items
from deepspec.store import Store
from deepspec.target.load import load_target, load_template
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
from tests.given.targets.tiny import CHATML, answered, write_target

TOOLS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
FUSSY = "{% if messages[0].role == 'system' %}{{ raise_exception('no [system] role') }}{% endif %}" + TOOLS + CHATML


@pytest.fixture(scope="module")
def fussy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target whose template refuses some rows; its embedding has no row for the token of padding, a usual thing."""
    folder = write_target(tmp_path_factory.mktemp("fussy"), FUSSY)
    tokens = [f"<|extra_{n}|>" for n in range(5)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.pad_token = tokens[-1]
    tokenizer.save_pretrained(folder)
    return folder


def with_system(row_id: str) -> dict[str, Any]:
    row: dict[str, Any] = answered(row_id, "hi", "hello there")
    messages = [{"role": "system", "content": "Be brief."}, *row["messages"]]
    return {**row, "messages": messages, "generated": [2]}


def calling(row_id: str, arguments: Any) -> dict[str, Any]:
    row: dict[str, Any] = answered(row_id, "hi", "hello", "more", "there", generated=[3], finish_reasons=["stop"])
    row["messages"][1]["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
    return row


BAD = {
    "template_refuses": with_system("b1"),
    "bad_tools": calling("b2", "no JSON"),
    "token_out_of_range": answered("b3", "say <|extra_4|>", "no"),
    "nothing_supervised": answered("b4", "hi", "", finish_reasons=["length"]),
    "malformed": {key: value for key, value in answered("b5", "hi", "yo").items() if key != "finish_reasons"},
    "prompt_differs": answered("b6", "hi", "hello", usage={"prompt_tokens": 5}),
    "only_reasoning": answered("b7", "hi", "", reasoning={"1": "hm"}),
    "cut_in_reasoning": answered("b8", "hi", "", reasoning={"1": "hm"}, finish_reasons=["length"]),
    "template_rewrites": answered("b9", "hi", "hello", reasoning={"1": "hm"}),
    "filtered": answered("b10", "hi", "hello", finish_reasons=["content_filter"]),
}


def mixed(good: int) -> list[dict[str, Any]]:
    """Return all the bad rows among so many good ones."""
    return [*rows(good), *BAD.values()]


def run(spec: Any, target: Path, answers: Artifact, store: Store, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    report = Heard()
    out = out_for(store, scratch, answers)
    counts = stage.run(spec, {"answers": answers}, out, placement_for(target, scratch), report)
    out.publish(spec, 1, counts)
    return counts, report.lines


def test_every_bad_row_is_counted_by_its_reason_and_the_good_ones_are_captured(
    fussy: Path, store: Store, tmp_path: Path
) -> None:
    answers = publish_answers(store, tmp_path, [mixed(20), rows(5, seed=1)])
    counts, lines = run(spec_for(fussy, bad_share=0.5), fussy, answers, store, tmp_path)
    assert {key: n for key, n in counts["rows"].items() if key.startswith("dropped_")} == {
        f"dropped_{reason}": 1 for reason in BAD
    }
    assert counts["samples"] == counts["rows"]["rows_kept"] == 25
    (line,) = [line for line in lines if "rows read" in line]
    assert line.startswith("35 rows read, 25 kept, dropped: 1 template_refuses, 1 bad_tools")
    assert line.endswith("; 25 samples")


def test_the_line_tells_statuses_splits_cuts_and_dates(target: Path, store: Store, tmp_path: Path) -> None:
    some = [
        answered("kept", "hi", "hello there"),
        answered("short", "hi", ""),
        answered("held", "hi", "hello", split="test"),
        answered("failed", "hi", "", status="error"),
        answered("long", "hi", "x" * 200),
    ]
    answers = publish_answers(store, tmp_path, [some])
    _, lines = run(spec_for(target, max_length=100), target, answers, store, tmp_path)
    told = "5 rows read, 2 kept, dropped: 1 too_few_supervised, 1 status_error; 2 samples; 1 of them cut at 100 tokens"
    assert f"{told}; rows of other splits: 1" in lines
    clocked = write_target(tmp_path / "clocked", "{{ strftime_now('%Y') }}" + CHATML)
    _, lines = run(spec_for(clocked), clocked, answers, Store(tmp_path / "other"), tmp_path / "other")
    assert any("without the date that the template reads, rendered with 2026-01-01: 3" in line for line in lines)


def test_too_many_bad_rows_end_the_stage_with_reasons_and_ids(fussy: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [mixed(20)])
    with pytest.raises(BadRowsError) as caught:
        run(spec_for(fussy), fussy, answers, store, tmp_path)
    message = str(caught.value)
    assert "10 of 30 rows (33.3%) cannot be used, and cache.bad_share allows 0.05 of them" in message
    assert "1  template_refuses        part-00000.jsonl.zst:21: sample b1:" in message
    assert "no [system] role" in message
    assert all(f"sample b{n}" in message for n in range(1, 11))


def test_a_larger_share_goes_on_with_the_same_address_and_what_was_committed(
    fussy: Path, store: Store, tmp_path: Path
) -> None:
    answers = publish_answers(store, tmp_path, [rows(30), mixed(2)])
    with pytest.raises(BadRowsError):
        run(spec_for(fussy), fussy, answers, store, tmp_path)
    kept = {entry.key for mark in out_for(store, tmp_path, answers).parts() for entry in mark.files.values()}
    assert kept
    spec = spec_for(fussy, bad_share=0.5)
    assert spec.identity() == spec_for(fussy).identity()
    ref = build(spec, fussy, answers, store, tmp_path)
    assert kept < {entry.key for entry in open_artifact(store, ref, tmp_path).manifest.files.values()}


def test_the_end_judges_what_all_workers_read(fussy: Path, store: Store, tmp_path: Path) -> None:
    """No shard of ten rows is judged alone; thirty rows together are."""
    bad = list(BAD.values())
    answers = publish_answers(store, tmp_path, [[*rows(9, seed=n), bad[n]] for n in range(3)])
    inputs, placement = {"answers": answers}, placement_for(fussy, tmp_path)
    spec = spec_for(fussy)
    for shard in range(3):
        stage.run_shard(shard, spec, inputs, out_for(store, tmp_path, answers), placement, Heard())
    with pytest.raises(BadRowsError, match=r"3 of 30 rows \(10.0%\).*\n.*sample b1(.|\n)*sample b2(.|\n)*sample b3"):
        stage.finish(spec, inputs, out_for(store, tmp_path, answers), Heard())


def test_a_worker_that_goes_on_counts_what_was_read_before(fussy: Path, store: Store, tmp_path: Path) -> None:
    """The second shard alone has a bad row in twenty; with the first there is one in sixty."""
    answers = publish_answers(store, tmp_path, [rows(40), [*rows(18, seed=1), BAD["malformed"], BAD["filtered"]]])
    inputs, placement = {"answers": answers}, placement_for(fussy, tmp_path)
    spec = spec_for(fussy)
    stage.run_shard(0, spec, inputs, out_for(store, tmp_path, answers), placement, Heard())
    counts, _ = run(spec, fussy, answers, store, tmp_path)
    assert counts["samples"] == 58


def test_a_stage_that_goes_on_drops_the_same_rows(fussy: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [mixed(20)])
    spec = spec_for(fussy, bad_share=0.5, part_bytes=60_000)
    whole = build(spec, fussy, answers, Store(tmp_path / "other"), tmp_path / "undisturbed")

    out = out_for(store, tmp_path, answers)
    with pytest.raises(StopError):
        stage.run(spec, {"answers": answers}, out, placement_for(fussy, tmp_path), Stopping())
    assert out.parts()
    ref = build(spec, fussy, answers, store, tmp_path)
    assert ref.content == whole.content
    assert open_artifact(store, ref, tmp_path).counts["rows"]["dropped_bad_tools"] == 1


@pytest.mark.parametrize("error", [StoreError("gone"), MemoryError(), KeyboardInterrupt(), OSError("disk")])
def test_what_is_no_rows_fault_ends_the_stage(
    target: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def failing(self: ChatTemplate, row: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr(ChatTemplate, "render", failing)
    answers = publish_answers(store, tmp_path, [rows(3)])
    with pytest.raises(type(error)):
        run(spec_for(target), target, answers, store, tmp_path)


def test_nothing_to_train_on_is_told_with_reasons_and_ids(fussy: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [[with_system(f"s{n}") for n in range(6)]])
    wanted = (
        r"can be trained on: 6 rows read, 0 kept, dropped: 6 template_refuses\n +6  template_refuses .*sample s0.*s1"
    )
    with pytest.raises(SourceError, match=wanted):
        run(spec_for(fussy), fussy, answers, store, tmp_path)
    with pytest.raises(SourceError, match=wanted):
        measure_answers(answers, load_template(fussy), CacheOptions(), None)


def test_a_plan_counts_bad_rows_and_goes_on(fussy: Path, store: Store, tmp_path: Path) -> None:
    answers = publish_answers(store, tmp_path, [mixed(20)])
    told = measure_answers(answers, load_template(fussy), CacheOptions(layers=(1,)), load_target(fussy))
    assert (told.rows, told.samples) == (30, 20)


def test_a_template_without_weights_knows_the_embedding_too(fussy: Path, tmp_path: Path, store: Store) -> None:
    answers = publish_answers(store, tmp_path, [mixed(1)])
    path = answers.path("part-00000.jsonl.zst")
    counts = [
        read_items([path], template, CacheOptions()).counts
        for template in (load_template(fussy), load_target(fussy).template)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["dropped_token_out_of_range"] == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["stop", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
WHOLE = [
    *BAD.values(),
    answered("w", "hi", "<think>hm</think>yo", "x", "y", token_ids=[[5], [6]], reasoning={"1": "a"}),
]


@st.composite
def odd_rows(draw: st.DrawFn) -> Any:
    """A row of which some places hold anything at all, or none at all."""
    row = copy.deepcopy(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = row
        while True:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not place[key] or not isinstance(place[key], dict | list) or draw(st.booleans()):
                break
            place = place[key]
        if draw(st.booleans()):
            place[key] = draw(JSON)
        else:
            del place[key]
        if not row:
            break
    return row


def accounted(counts: Counter[str]) -> int:
    """Return the rows of which the counts say what became of them, but for those with too little to learn."""
    fates = [
        key for key in counts if key.startswith(("status_", "dropped_")) and not key.endswith("too_few_supervised")
    ]
    return counts["rows_kept"] + counts["other_split"] + sum(counts[key] for key in fates)


@pytest.fixture(scope="module")
def reader(fussy: Path) -> ChatTemplate:
    return load_template(fussy)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=st.lists(odd_rows() | st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=8))
def test_no_answers_row_ends_the_cache_stage(reader: ChatTemplate, tmp_path: Path, odd: list[Any]) -> None:
    good = rows(3)
    mixture = [row for pair in zip(odd, [*good, *[None] * len(odd)], strict=False) for row in pair if row is not None]
    mixture += [row for row in good if row not in mixture]
    path = tmp_path / "part.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixture))
    read = read_items([path], reader, CacheOptions())
    assert {row["id"] for row in good} <= {item.sample.sample_id for item in read.items}
    assert read.counts["rows"] == len(mixture)
    left = len(mixture) - accounted(read.counts)
    assert 0 <= left <= read.counts["dropped_too_few_supervised"]
    assert all(0 <= token < 264 for item in read.items for token in item.sample.input_ids)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=st.lists(odd_rows(), min_size=3, max_size=12))
def test_whatever_the_rows_hold_the_good_ones_are_in_the_cache(
    fussy: Path, tmp_path_factory: pytest.TempPathFactory, odd: list[Any]
) -> None:
    scratch = tmp_path_factory.mktemp("run")
    store = Store(scratch / "root")
    odd = [row for row in odd if "\\ud" not in json.dumps(row) and "NaN" not in json.dumps(row)]
    odd = [row for row in odd if "Infinity" not in json.dumps(row)]  # what no answers file of ours can hold
    answers = publish_answers(store, scratch, [[*odd, *rows(4)]])
    cache = opened(build(spec_for(fussy, bad_share=1.0), fussy, answers, store, scratch), store, scratch)
    assert {f"s{n:03d}" for n in range(4)} <= {cache.index.sample_id(n) for n in range(len(cache))}
