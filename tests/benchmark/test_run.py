"""The stage as a whole, on a tiny target."""

from pathlib import Path

import pytest

from deepspec.benchmark.run import run
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.formats.speed import SPEED, read_speed
from deepspec.publish import Out
from tests.evaluate.published import Heard, given


def test_both_sides_are_timed_at_each_batch_size(tmp_path: Path):
    case = given(tmp_path)
    spec = BenchmarkSpec(
        target=case.target, benchmarks=case.benchmarks, batches=(1, 3), samples=2, max_new_tokens=6, repeats=1
    )
    out = Out(case.store, "speed", "b" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    heard = Heard()
    counts = run(spec, {"draft": case.draft}, out, case.placement, heard)
    speed = read_speed(out.file(SPEED))
    assert [each.batch for each in speed.batches] == [1, 3]
    for each in speed.batches:
        assert sum(each.shares.values()) == pytest.approx(1)
        assert set(each.shares) == {"draft", "verify", "sample", "other"}
        assert each.tokens_per_round >= 1
    assert counts["speedup"]["3"] == speed.batches[1].speedup
    assert [each.requests for each in speed.loads] == [1, 4, 16, 64, 256]
    assert heard.tables["speed-by-load"][0]["requests"] == 1
    assert speed.hardware == spec.hardware
    assert heard.figures["speed"].startswith(b"\x89PNG")


def test_the_fingerprint_moves_the_address(tmp_path: Path):
    case = given(tmp_path)
    here = BenchmarkSpec(target=case.target, benchmarks=case.benchmarks)
    assert here.identity() != here.but(hardware="another machine").identity()
    assert here.identity()["hardware"] == here.hardware
