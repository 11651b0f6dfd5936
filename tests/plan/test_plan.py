"""Presets, overrides, estimates and refusals."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deepspec.asking.sampling import Sampling
from deepspec.errors import BudgetError, SourceError, SpecError, UnknownNameError
from deepspec.plan import presets
from deepspec.plan import resolve as resolving
from deepspec.plan.budget import (
    SPARE,
    check_limits,
    greedy_count,
    plan_counts,
    plan_estimate,
    plan_rows,
    question_count,
    sample_count,
)
from deepspec.plan.cost.table import size
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import check_sources
from deepspec.ranges import Range
from deepspec.specs import TargetId
from deepspec.store import Store
from deepspec.target_cache.sizes import Captured, cache_size
from flows.choices import Choices, named_endpoints
from tests.given.some import some


def plan_of(target: str = "smollm2-135m", *overrides: str, dataset: str = "demo") -> Plan:
    return presets.build_plan([presets.target(target), presets.load("datasets", dataset)], overrides)


@pytest.mark.parametrize("target", presets.names("targets"))
@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
@pytest.mark.parametrize("dataset", presets.names("datasets"))
def test_every_preset_makes_a_plan_with_an_estimate(target: str, algorithm: str, dataset: str) -> None:
    plan = plan_of(target, f"train.draft.algorithm={algorithm}", dataset=dataset)
    assert plan.train.draft.algorithm == algorithm
    assert some(plan_estimate(plan)).store_bytes.mid > 0


@pytest.mark.parametrize("name", presets.names("sizes"))
def test_every_size_makes_a_plan(name: str) -> None:
    assert some(plan_estimate(Choices(size=name).plan)).hours["train"].mid > 0


def test_an_eagle3_draft_computes_every_position_at_each_of_its_steps() -> None:
    """Whatever blocks and anchors of other drafts are: twice the steps are nearly twice the work."""
    told = ("train.draft.algorithm=eagle3", "dataset.samples=100")
    four, eight = (
        some(plan_estimate(plan_of("qwen3-4b", *told, f"train.objective.ttt_length={steps}"))).hours["train"].mid
        for steps in (4, 8)
    )
    assert 1.5 < eight / four < 2.0


def test_a_reduced_vocabulary_is_cheaper_to_train() -> None:
    """A sixth of the head: it is most of what a draft of two blocks computes."""
    whole = some(plan_estimate(Choices(size="hour", overrides=("train.draft.draft_vocab_size=null",)).plan))
    reduced = some(plan_estimate(Choices(size="hour").plan))
    assert reduced.hours["train"].mid < 0.5 * whole.hours["train"].mid


@pytest.mark.parametrize("name", presets.names("hardware"))
def test_every_hardware_preset_is_valid(name: str) -> None:
    assert presets.hardware(name).devices >= 1


def test_the_published_cache_of_a_4b_target_takes_38_tb() -> None:
    """1.3 M samples, 1.24 G tokens, (5+1) layers × 2560 × 2 bytes + 6 a token."""
    cost = some(plan_estimate(plan_of("qwen3-4b", dataset="open-perfectblend")))
    assert cost.cache_bytes["published"].mid == pytest.approx(1.2402e9 * (6 * 2560 * 2 + 6))
    assert size(cost.cache_bytes["published"].mid) == "38.1 TB"
    assert cost.cache_bytes["bf16-zstd"].mid < 0.7 * cost.cache_bytes["published"].mid
    assert cost.cache_bytes["fp8"].mid < cost.cache_bytes["bf16-zstd"].mid


def test_what_becomes_of_bad_rows_holds_wherever_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.jsonl").write_text('{"turns": ["b"]}\n')
    files = (f"dataset.answers={tmp_path}/a.jsonl", f"dataset.benchmarks_dir={tmp_path}/b", "dataset.prompts=[]")
    identity = TargetId(config="c", weights="w", tokenizer="t", template="p")

    def regenerate(*overrides: str) -> Any:
        plan = plan_of("smollm2-135m", *files, *overrides)
        specs = resolving._specs(plan, identity, resolving._sources(plan), resolving.benchmarks_of(plan), "any")
        return specs["regenerate"]

    kept, told = regenerate(), regenerate("prepare.bad_rows=stop", "prepare.bad_share=0.5")
    assert (kept.answers_bad_rows, kept.answers_bad_share) == ("drop", 0.05)
    assert (told.answers_bad_rows, told.answers_bad_share) == ("stop", 0.5)
    assert told.identity() == kept.identity(), "it decides whether there are answers, never which"


def test_an_estimate_is_an_interval_around_the_guess() -> None:
    tokens = some(plan_estimate(plan_of())).tokens
    assert tokens.low == pytest.approx(0.7 * tokens.mid)
    assert tokens.high == pytest.approx(1.3 * tokens.mid)


def test_overrides_are_read_as_yaml_and_the_last_one_wins() -> None:
    plan = plan_of("smollm2-135m", "train.steps=100", "train.steps=200", "cache.layers=[1, 2]")
    assert plan.train.steps == 200
    assert plan.cache.layers == (1, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stps=3", r"train\.stps: unknown"),
        ("train.steps=many", r"train\.steps: .*integer"),
        ("train.steps=0", r"train\.steps: .*greater than 0"),
        ("nonsense", r"--set 'nonsense': wanted section\.field=value"),
        ("=3", "wanted section"),
        ("train.steps=[", "not YAML"),
        ("evaluate.max_new_tokens=3", "below the block of 7"),
    ],
)
def test_a_wrong_override_names_itself(override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_of("smollm2-135m", override)


def test_unknown_presets_name_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown target .*'smolm'; known: .*smollm2-135m"):
        presets.target("smolm")
    with pytest.raises(UnknownNameError, match="unknown dataset preset 'x'; known: demo"):
        presets.load("datasets", "x")


def test_a_hub_id_a_folder_and_an_own_file_work_like_a_preset(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("target: {name: mine, model: org/model}\n")
    assert presets.target("org/model") == {"target": {"name": "model", "model": "org/model"}}
    assert presets.target(str(tmp_path))["target"]["model"] == str(tmp_path)
    assert presets.target(str(own))["target"]["name"] == "mine"


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- 1\n")
    with pytest.raises(SpecError, match="holds list, wanted a mapping"):
        presets.target(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a: [", b"\x00"])
def test_a_preset_of_ones_own_that_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(data)
    with pytest.raises(SpecError, match=r"mine\.yaml: not YAML"):
        presets.target(str(tmp_path / "mine.yaml"))


def test_a_plan_without_input_says_what_to_give() -> None:
    with pytest.raises(SpecError, match="no prompts: give"):
        presets.build_plan([presets.target("smollm2-135m")])
    found = presets.build_plan([presets.target("smollm2-135m")], ["dataset.cache=imported"])
    assert found.dataset.cache == "imported", "a cache wants no prompts"


def test_a_missing_prompts_file_is_named(tmp_path: Path) -> None:
    plan = Choices(prompts=(str(tmp_path / "none.jsonl"),), benchmarks_dir="demo").plan
    with pytest.raises(SourceError, match=r"none\.jsonl.*no such file"):
        check_sources(plan)


def test_a_gguf_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "served.gguf"
    plan = Choices(dataset="demo", overrides=(f"export.gguf={path}",)).plan
    with pytest.raises(SourceError, match=r"served\.gguf: no such file; export\.gguf wants the GGUF file"):
        check_sources(plan)
    path.write_text("# a page")
    with pytest.raises(SourceError, match=r"served\.gguf: no GGUF file; export\.gguf wants the GGUF file"):
        check_sources(plan)
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    check_sources(plan)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("limits.disk_gb=10", r"needs about .* TB, above limits\.disk_gb=10"),
        ("limits.hours=0.001", "hours, above limits.hours"),
        ("limits.money=1", r"USD, above limits\.money=1"),
    ],
)
def test_a_plan_above_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: None)
    plan = plan_of("qwen3-4b", "limits.hardware=h100x8", limit, dataset="open-perfectblend")
    with pytest.raises(BudgetError, match=message):
        check_limits(plan, Store(tmp_path))


def test_a_plan_that_does_not_fit_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: 10**9)
    with pytest.raises(BudgetError, match=r"needs about .* TB in .*, which has 1 GB free; store no states "):
        check_limits(plan_of("qwen3-4b", dataset="open-perfectblend"), Store(tmp_path))


def test_what_the_store_holds_already_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("qwen3-4b", dataset="open-perfectblend")
    wanted = some(plan_estimate(plan)).store_bytes.mid * SPARE
    monkeypatch.setattr(Store, "free_bytes", lambda self: 10**9)
    check_limits(plan, Store(tmp_path), held=int(wanted))
    with pytest.raises(BudgetError, match="of it there already"):
        check_limits(plan, Store(tmp_path), held=int(wanted) - 2 * 10**9)


def test_the_table_shows_free_space_and_the_published_layout_beside_ours(tmp_path: Path) -> None:
    rows = {row["what"]: row["estimate"] for row in plan_rows(plan_of(), Store(tmp_path))}
    assert {"samples", "target cache, published", "target cache, bf16-zstd", "free in the store"} <= set(rows)


def test_smoke_makes_everything_small_and_an_override_still_wins() -> None:
    plan = Choices(smoke=20, overrides=("train.steps=7",)).plan
    assert plan.prepare.max_samples == 20
    assert plan.train.steps == 7


def test_endpoints_need_the_name_of_the_model() -> None:
    with pytest.raises(SpecError, match="--endpoint needs --model"):
        named_endpoints(["http://127.0.0.1:1/v1"], None, None)


def test_questions_are_counted_in_the_folder(tmp_path: Path) -> None:
    for name, rows in (("a", 3), ("b", 9)):
        (tmp_path / f"{name}.jsonl").write_text('{"turns": ["x"]}\n' * rows)
    plan = Choices(benchmarks_dir=str(tmp_path), overrides=("evaluate.samples=5", "evaluate.temperatures=[0, 1]")).plan
    assert question_count(plan) == (3 + 5) * 2


@pytest.mark.parametrize("given", ["answers", "prompts"])
def test_the_rows_of_a_local_file_are_counted_for_an_estimate(tmp_path: Path, given: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": []}\n' * 60)
    plan = Choices(**{given: str(file) if given == "answers" else (str(file),)}).plan
    assert sample_count(plan) == 60
    assert sample_count(plan.but(prepare=plan.prepare.but(max_samples=20))) == 20


def test_the_nine_benchmarks_have_their_published_sizes() -> None:
    plan = plan_of("qwen3-4b", "evaluate.temperatures=[0]", "dataset.benchmarks_dir=null")
    assert question_count(plan) == 500 + 500 + 30 + 164 + 256 + 500 + 80 + 500 + 500


def test_moving_the_cache_can_take_longer_than_computing() -> None:
    """25.5 TB at 2 GB/s are 3.5 hours once, and ten passes of training read it ten times."""
    settings = ("limits.hardware=h100x8", "train.greedy_samples=0")
    cost = some(plan_estimate(plan_of("qwen3-4b", *settings, dataset="open-perfectblend")))
    assert cost.hours["cache"].mid == pytest.approx(cost.cache_bytes["bf16-zstd"].mid / 2e9 / 3600)
    assert cost.hours["train"].mid == pytest.approx(10 * cost.hours["cache"].mid, rel=1e-3)


def test_without_stored_states_the_target_runs_in_every_pass() -> None:
    """2 FLOPs a parameter and token, ten passes, on 8 devices of 320 TFLOP/s; nothing but tokens is stored."""
    cost = some(plan_estimate(plan_of("qwen3-4b", "limits.hardware=h100x8", dataset="open-perfectblend")))
    cache, online, rolling = (cost.sources[name] for name in ("cache", "online", "rolling"))
    forward = 2 * 4_022_468_096 * 1.2402e9 / (8 * 320e12) / 3600
    computing = online.train_hours.mid - 10 * forward
    assert 0 < computing < cache.train_hours.mid
    assert online.stored.mid == rolling.stored.mid < cache.stored.mid / 1000
    assert (online.local.mid, rolling.local.mid) == (0, 64 << 30)
    device_hours = (cache.cache_hours.mid + cache.train_hours.mid) * 8 * 2.5
    requests = cache.puts.mid * 0.005e-3 + cache.gets.mid * 0.0004e-3
    assert cache.money.mid == pytest.approx(device_hours + cache.stored.mid * 0.023e-9 + requests)


def test_the_chosen_source_decides_what_the_plan_costs() -> None:
    online = ("limits.hardware=h100x8", "train.source=online", "cache.codec=none", "train.greedy_samples=0")
    plan = plan_of("qwen3-4b", *online, dataset="open-perfectblend")
    cost = some(plan_estimate(plan))
    assert cost.hours["train"] == cost.sources["online"].train_hours
    assert cost.store_bytes.mid < 0.01 * cost.cache_bytes["bf16-zstd"].mid


def test_engines_beside_training_cost_as_many_devices_again_and_what_is_kept_is_asked_for_once() -> None:
    """Ten forward passes take longer than training; one, with the other nine read from a disk, does not."""
    engine = ("limits.hardware=h100x8", "train.source=engine", "cache.codec=none")
    cost = some(plan_estimate(plan_of("qwen3-4b", *engine, dataset="open-perfectblend")))
    live, online = cost.sources["engine"], cost.sources["online"]
    forward = 2 * 4_022_468_096 * 1.2402e9 / (8 * 320e12) / 3600
    computing = online.train_hours.mid - 10 * forward
    assert live.train_hours.mid == pytest.approx(max(10 * forward, computing))
    assert live.money.mid == pytest.approx(online.money.mid + (2 * live.train_hours.mid - online.train_hours.mid) * 20)
    assert (live.stored, live.local.mid) == (online.stored, 0)
    kept = some(plan_estimate(plan_of("qwen3-4b", *engine, "train.keep_states=100TB", dataset="open-perfectblend")))
    assert kept.sources["engine"].train_hours.mid == pytest.approx(max(forward, computing))
    assert kept.sources["engine"].local.mid == kept.cache_bytes["bf16"].mid


def test_states_that_are_computed_while_training_are_not_stored_too() -> None:
    with pytest.raises(SpecError, match=r"set cache\.codec=none, or train\.source=cache"):
        plan_of("qwen3-4b", "train.source=rolling", dataset="open-perfectblend")


def test_prices_come_from_a_file_of_the_users(tmp_path: Path) -> None:
    prices = presets.hardware("h100x8").model_dump() | {"device_hour": 0.0, "storage_gb_month": 1.0, "egress_gb": 0.1}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(prices))
    plan = plan_of("qwen3-4b", f"limits.hardware={tmp_path / 'mine.yaml'}", dataset="open-perfectblend")
    cost = some(plan_estimate(plan)).sources["cache"]
    assert cost.egress.mid == pytest.approx(10 * cost.stored.mid)  # ten passes
    assert cost.money.mid == pytest.approx(25.5e3 + 25.5e3, rel=0.01)  # a dollar a GB stored, a dime a GB read


def test_a_large_part_is_written_and_read_in_pieces() -> None:
    """30 parts of 180 MB after the codec: four pieces each, begin and end of the upload, a mark, a sign of life."""
    what = {"samples": 1, "supervised": Range.around(1), "last_rows": Range.around(0), "layers": 1, "hidden": 1000}
    tokens = Range.around(29 * (256 << 20) / 2005)
    size = cache_size(Captured(**what, tokens=tokens, part_bytes=256 << 20), Range.around(0.7))
    assert size.parts.mid == pytest.approx(30)
    assert size.puts.mid == pytest.approx(30 * (4 + 2 + 2))
    assert size.gets.mid == pytest.approx(30 * 5)


def test_a_target_that_reads_accepted_tokens_again_makes_two_passes_a_round() -> None:
    """Nearly all of a round is the target's passes, so evaluation takes nearly twice as long."""
    plan = plan_of("qwen3-next-80b-a3b")
    sizes = plan.target.sizes
    assert sizes is not None
    assert sizes.reads_again
    again, once = some(plan_estimate(plan)).hours, some(plan_estimate(plan, sizes.but(reads_again=False))).hours
    assert 1.8 < again["evaluate"].mid / once["evaluate"].mid < 2.0
    assert again["regenerate"] == once["regenerate"]


def test_greedy_answers_to_held_out_prompts_are_counted() -> None:
    """Of 1,000 prompts 40 are held out, at most 30 of them asked once more; one of 1,000 tokens in 33 then."""
    sizes = (
        "limits.hardware=h100",
        "prepare.max_samples=1000",
        "train.steps=100",
        "cache.codec=bf16",
        "dataset.samples=1000",
    )
    sampled = (*sizes, "regenerate.sampling.temperature=1", "train.greedy_samples=30")
    none, few = (
        some(plan_estimate(plan_of("qwen3-4b", *each))) for each in ((*sizes, "train.greedy_samples=0"), sampled)
    )
    greedy = some(few.greedy)
    assert none.greedy is None
    assert greedy.prompts == 30
    for stage in ("regenerate", "cache"):
        assert few.hours[stage].mid == pytest.approx(1.03 * none.hours[stage].mid, rel=0.01)
    assert few.store_bytes.mid == pytest.approx(none.store_bytes.mid + greedy.cost.stored.mid)
    assert greedy.cost.stored.mid == pytest.approx(0.03 * none.sources["cache"].stored.mid, rel=0.01)
    assert none.hours["train"].mid < few.hours["train"].mid
    assert few.puts.mid > none.puts.mid
    assert few.money.mid > none.money.mid
    lines = " ".join(plan_counts(plan_of("qwen3-4b", *sampled), Store("/tmp")))
    assert (
        "1,000 samples, lengths are guessed, ± 30 %; about 30 held-out prompts are answered at temperature 0, too"
        in lines
    )
    least = plan_of("qwen3-4b", *sampled, "train.greedy_samples=1", "dataset.samples=1", "prepare.max_samples=1")
    told = plan_counts(least, Store("/tmp"))[0]
    assert told.startswith(
        "1 sample, lengths are guessed, ± 30 %; about 1 held-out prompt is answered at temperature 0"
    )
    assert "greedy held-out answers: prompts asked once more" in str(
        plan_rows(plan_of(*("qwen3-4b", *sampled)), Store("/tmp"))
    )


@pytest.mark.parametrize(
    ("override", "count"),
    [
        ("train.greedy_samples=256", 40),
        ("train.greedy_samples=0", 0),
        ("train.greedy_samples=7", 7),
        ("regenerate.sampling.temperature=0", 0),
        ("train.validation_samples=0", 0),
        ("train.walked_tokens=0", 0),
        ("prepare.splits.validation=0", 0),
        ("cache.splits=[train]", 0),
        ("dataset.answers=answers.jsonl", 0),
        ("dataset.cache=c", 0),
    ],
)
def test_greedy_answers_are_made_where_others_are_sampled_and_looks_walk(override: str, count: int) -> None:
    sampled = ("dataset.samples=1000", "prepare.max_samples=1000", "regenerate.sampling.temperature=1")
    assert greedy_count(plan_of("smollm2-135m", *sampled, override)) == count


def test_greedy_answers_are_asked_and_kept_as_the_others_are_but_for_what_moves_the_likeliest_token() -> None:
    """Also where training has engines give its states: those over them are stored."""
    told = ("regenerate.sampling={temperature: 0.6, top_p: null, top_k: 20, repetition_penalty: 1.1, max_tokens: 99}",)
    identity = TargetId(config="c", weights="w", tokenizer="t", template="p")

    def specs(*overrides: str) -> dict[str, Any]:
        plan = plan_of("smollm2-135m", *told, "train.greedy_samples=9", *overrides)
        return resolving._greedy_specs(plan, identity)

    found = specs("cache.layers=[1, 2]", "cache.max_length=500")
    asked, kept = found["regenerate-greedy"], found["cache-greedy"]
    assert asked.sampling == Sampling(temperature=0.0, top_p=None, max_tokens=99)
    assert (asked.held_out, asked.target, kept.target) == (9, identity, identity)
    assert (kept.layers, kept.max_length, kept.splits, kept.states) == ((1, 2), 500, ("validation",), "transformers")
    live = specs("train.source=engine", "cache.codec=none", "train.engine_version=0.11.2")["cache-greedy"]
    assert (live.codec, live.states, live.engine_version) == ("bf16-zstd", "vllm", "0.11.2")
    assert specs("regenerate.sampling.temperature=0") == {}
