"""The stage as a whole, on a tiny target."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact, open_artifact
from deepspec.benchmark import asked
from deepspec.benchmark.load import beside, recorded, speed_by_load
from deepspec.benchmark.run import run
from deepspec.benchmark.spec import BenchmarkSpec, hardware_fingerprint
from deepspec.decoding.schedule import StepRate
from deepspec.errors import SpecError
from deepspec.evaluate.run import run as evaluate
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.formats.scores import SCORES
from deepspec.formats.speed import SPEED, BatchSpeed, Speed, read_speed
from deepspec.lines.rows import write_rows
from deepspec.publish import Out
from deepspec.rounds.decoded import Decoded, Round
from tests.given.engines.streaming import Fake, serving
from tests.given.heard import Heard
from tests.given.published.evaluated import Given, given
from tests.given.published.exports import publish_exports


def scores(case: Given) -> Artifact:
    spec = EvaluateSpec(
        target=case.target, benchmarks=case.benchmarks, temperatures=(0.0,), max_new_tokens=8, lossless_samples=0,
        untrained_samples=0,
    )  # fmt: skip
    inputs = {"draft": case.draft}
    out = Out(case.store, "scores", "s" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    ref = out.publish(spec, 1, evaluate(spec, inputs, out, case.placement, Heard()))
    return open_artifact(case.store, ref, case.placement.scratch)


def test_both_sides_are_timed_at_each_batch_size_and_rounds_replayed_at_each_load(tmp_path: Path) -> None:
    case = given(tmp_path)
    spec = BenchmarkSpec(
        target=case.target, benchmarks=case.benchmarks, batches=(1, 3), samples=2, max_new_tokens=6, repeats=1,
        loads=(1, 4),
    )  # fmt: skip
    out = Out(case.store, "speed", "b" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    heard = Heard()
    counts = run(spec, {"draft": case.draft, "scores": scores(case)}, out, case.placement, heard)
    speed = read_speed(out.file(SPEED))
    assert [each.batch for each in speed.batches] == [1, 3]
    for each in speed.batches:
        assert sum(each.shares.values()) == pytest.approx(1)
        assert set(each.shares) == {"draft", "verify", "sample", "other"}
        assert each.tokens_per_round >= 1
    assert counts["speedup"]["3"] == speed.batches[1].speedup
    assert [each.requests for each in speed.loads] == [1, 4]
    assert heard.tables["load"][0]["requests"] == 1
    assert speed.hardware == spec.hardware
    assert speed.served is None
    assert heard.figures["speed"].startswith(b"\x89PNG")
    assert heard.figures["load"].startswith(b"\x89PNG")


def test_an_engine_is_measured_under_load_where_the_stage_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "BEGINNING", 0)  # the stand-in's answers begin otherwise
    case = given(tmp_path)
    serve = {"loads": (1, 2), "requests": 2, "max_tokens": 4, "checked": 2}
    exports, _, _ = publish_exports(tmp_path / "exports", "eagle3_llama_near", forms=("sglang",))
    fake = Fake(kind="SGLang", options={"speculative_draft_window_size": None})
    with serving(fake) as drafting, serving(Fake(kind="SGLang", drafts=False)) as plain:
        there = case.placement.model_copy(update={"drafting": (drafting,), "endpoints": (plain,)})
        placed = replace(case, placement=there)
        speed, heard = time_it(placed, scores(case), exports, serve=serve, engine_samples=0, loads=())
    assert speed.served is None
    assert speed.under_load is not None
    untold = "SGLang 7 was started without --speculative-draft-window-size 63, which the draft wants"
    assert speed.under_load.warnings[0].startswith(untold)
    assert [each.load for each in speed.under_load.levels] == [1, 2]
    assert heard.figures["served"].startswith(b"\x89PNG")
    assert heard.tables["served"][0]["load"] == "1 at once"
    assert speed.under_load.counts()["break_even"] == speed.under_load.break_even_text()
    spec = BenchmarkSpec(target=case.target, benchmarks=case.benchmarks, engine_samples=0, serve=serve)
    assert (spec.engine_tokens, spec.engine_slots) == (4, 2)
    assert BenchmarkSpec(target=case.target, benchmarks=case.benchmarks).engine_slots == 1


LONG = ["x" * 600]
"""Beyond the 512 tokens that the tiny target reads."""


def time_it(case: Given, of: Artifact, exports: Artifact | None = None, **options: Any) -> tuple[Speed, Heard]:
    spec = BenchmarkSpec(
        target=case.target, benchmarks=case.benchmarks,
        **{"batches": (1,), "samples": 2, "max_new_tokens": 6, "repeats": 1, "loads": (1,), **options},
    )  # fmt: skip
    out = Out(case.store, "speed", "b" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    heard = Heard()
    inputs = {"draft": case.draft, "scores": of, **({} if exports is None else {"exports": exports})}
    run(spec, inputs, out, case.placement, heard)
    return read_speed(out.file(SPEED)), heard


def test_questions_beyond_the_targets_positions_are_not_timed(tmp_path: Path) -> None:
    case = given(tmp_path, {"sums": [LONG, ["2+2?"], ["3+3?"]]})
    speed, heard = time_it(case, scores(case), samples=3)
    assert speed.batches[0].tokens_per_round >= 1
    assert "1 of 3 questions are left out, the target has room for 501 tokens" in heard.lines
    with pytest.raises(SpecError, match=r"no prompt has room; lower benchmark\.max_new_tokens"):
        time_it(case, scores(case), max_new_tokens=600)


def test_scores_without_a_decoded_sample_are_timed_and_said_to_tell_nothing(tmp_path: Path) -> None:
    """As an earlier version published them: one trace file, and no row in it."""
    case = given(tmp_path)
    told = scores(case).path(SCORES).read_text()
    out = Out(case.store, "scores", "0" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    out.file(SCORES).write_text(told)
    write_rows(out.file("traces-00000.jsonl.zst"), [])
    ref = out.publish(EvaluateSpec(target=case.target, benchmarks=case.benchmarks), 2, {})
    speed, heard = time_it(case, open_artifact(case.store, ref, case.placement.scratch))
    assert speed.loads == ()
    assert [line for line in heard.lines if "holds no round of 4 proposed tokens at temperature 0" in line]


def timed(batch: int, seconds: float, verify: float) -> BatchSpeed:
    return BatchSpeed(
        batch=batch, tokens_per_second=1, plain_tokens_per_second=1, speedup=1, spread=1, tokens_per_round=1,
        round_seconds=seconds, round_cost=1, shares={"verify": verify, "draft": 1 - verify}, plain_shares={},
        prefill_seconds=0,
    )  # fmt: skip


def test_the_throughput_under_load_counts_the_time_of_drafting() -> None:
    """One token is drafted and always accepted; a pass takes 1 s whatever is in it, drafting 1 s of each round."""
    sample = Decoded(
        sample_id="a", prompt_tokens=1, tokens=(1,) * 3, finish_reason="length",
        rounds=(Round(room=9, proposed=1, accepted=1, stopped=False, confidence=(9.0,)),),
    )  # fmt: skip
    rounds = recorded([sample], 1, ())
    assert rounds is not None
    free = StepRate(tokens=(1, 1000), seconds=(1.0, 1.0))
    (found,) = speed_by_load(rounds, free, beside([timed(1, 2.0, 0.5), timed(8, 2.0, 0.5)]), [4], seed=0)
    assert found.plain_tokens_per_second == pytest.approx(4)
    assert found.fixed_tokens_per_second == pytest.approx(4 * 2 / 2)
    assert found.speedups == pytest.approx((1.0, 1.0))


def test_survival_follows_the_fitted_temperatures_and_without_confidence_what_is_usual() -> None:
    kept = Round(room=9, proposed=2, accepted=1, stopped=False, confidence=(2.0, 0.0))
    lost = replace(kept, accepted=0)
    sample = Decoded(sample_id="a", prompt_tokens=1, tokens=(1,) * 4, finish_reason="length", rounds=(kept, lost))
    told = recorded([sample], 2, (2.0, 1.0))
    assert told is not None
    assert told.survival[0] == pytest.approx([0.7311, 0.7311 / 2], abs=1e-4)  # sigmoid(2 / 2), then half of it
    silent = replace(sample, rounds=tuple(replace(each, confidence=()) for each in sample.rounds))
    usual = recorded([silent], 2, ())
    assert usual is not None
    assert usual.survival.tolist() == [[0.5, 0.0]] * 2
    assert recorded([silent], 3, ()) is None


def test_times_of_a_cpu_are_no_times_of_a_card_nor_of_other_threads() -> None:
    cards = ["NVIDIA H100", "NVIDIA L40S"]
    here = hardware_fingerprint()
    assert hardware_fingerprint("cpu", None, cards) == here, (
        "what was measured before devices were told stays where it is"
    )
    assert hardware_fingerprint("cpu", 4) == f"{here}, 4 threads"
    assert hardware_fingerprint("cuda", None, cards) == f"{here}, cuda: NVIDIA H100"
    assert hardware_fingerprint("cuda:1", 1, cards) == f"{here}, 1 thread, cuda:1: NVIDIA L40S"
    assert hardware_fingerprint("spread", None, cards) == f"{here}, spread: NVIDIA H100 + NVIDIA L40S"
    assert hardware_fingerprint("cuda") == f"{here}, cuda: a card that was not looked at"


def test_the_fingerprint_moves_the_address(tmp_path: Path) -> None:
    case = given(tmp_path)
    here = BenchmarkSpec(target=case.target, benchmarks=case.benchmarks)
    assert here.identity() != here.but(hardware="another machine").identity()
    assert here.identity()["hardware"] == here.hardware
