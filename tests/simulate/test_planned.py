"""What is simulated of a plan, and what the command says of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.errors import SpecError
from deepspec.plan import presets
from deepspec.plan.budget import workload
from deepspec.simulate.planned import REQUESTS, ROOM, scenario_of
from deepspec.simulate.scenario import Scenario

FEW = {"samples": 64, "tokens": 100, "global_batch": 8, "seconds": 4000, "checkpoint_every": 4, "epochs": 1}
GIVEN = [word for name, value in FEW.items() for word in ("--assume", f"{name}={value}")]


def planned(*assumed: str, hardware: str = "h200", settings: Sequence[str] = ()) -> Scenario:
    plan = presets.build_plan([presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")], settings)
    assert plan.target.sizes is not None
    return scenario_of(plan, plan.target.sizes, workload(plan, plan.target.sizes), presets.hardware(hardware), assumed)


def test_rates_are_those_of_the_machines_preset() -> None:
    """One H200 of 360 TFLOP/s; a token of 4.02 B parameters takes twice as many operations, 5 layers and the last of
    2560 values in bf16 are 30,720 bytes, a sample 260 + 694 tokens."""
    found = planned()
    assert found.engine_rate == pytest.approx(360e12 / (2 * 4_022_468_096))
    assert (found.engines, found.ranks, found.state_bytes, found.tokens) == (1, 1, 30_720, 954)
    assert found.total_steps == round(10 * 1_300_000 / 512)
    assert 10_000 < found.trainer_rate < found.engine_rate


def test_a_failure_comes_every_hour_whatever_there_is() -> None:
    for found in (planned(), planned(hardware="h200x8"), planned("engines=3")):
        parts = found.engines + found.ranks
        assert found.engine_mtbf == found.trainer_mtbf == 3600 * parts


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ([], 512),  # train.bigram_samples
        (["train.bigram_samples=100"], 100),
        (["train.start=fitted"], 512),  # the same samples
        (["train.start=fitted", "train.bigram_samples=0"], 48),  # 32,768 positions in answers of 694 tokens
        (["train.draft.algorithm=dflash"], 0),  # it has no Markov head
        (["train.draft.markov_head=rnn"], 0),
        (["train.draft.algorithm=eagle3", "train.start=fitted"], 0),
        (["train.warm_start=abc"], 0),
        (["train.bigram_samples=5000000"], 1_300_000),  # no more than there are
    ],
)
def test_a_simulation_begins_with_what_the_start_of_the_draft_reads(settings: list[str], samples: int) -> None:
    assert planned(settings=settings).start_samples == samples


def test_what_is_known_better_is_said_by_name() -> None:
    found = planned("engine_rate=46387", "engines=2", "trainer_mtbf=1000", "grain=2")
    assert (found.engine_rate, found.engines, found.trainer_mtbf, found.grain) == (46_387, 2, 1000, 2)
    for wrong, message in (("engines", "wanted name=value"), ("engine=2", "engine: unknown"), ("ranks=0", "ranks: ")):
        with pytest.raises(SpecError, match=message):
            planned(wrong)


def test_a_long_simulation_takes_several_samples_as_one_and_leaves_room_for_several() -> None:
    found = planned()
    assert found.grain == 32
    assert planned("seconds=600").grain == 1
    assert planned("ranks=64", "engines=32").grain == 2  # each rank has four requests in a step of 512
    assert found.ahead_bytes / (found.grain * found.tokens * found.state_bytes) >= ROOM
    assert found.seconds * found.trainer_rate / found.tokens / REQUESTS > found.grain


def test_the_command_simulates_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    words = ["plan", "--hardware", "laptop", "--simulate", *GIVEN]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["simulated"]["laptop"]
    assert (found["outcome"]["samples"], found["outcome"]["rows_lost"]) == (64, 0)
    assert found["scenario"]["start_samples"] == 100  # all of the demo
    assert {"scenario", "outcome", "needed"} == set(found)
    shown = CliRunner().invoke(app, words)
    assert "rows lost" in shown.output
    assert "simulated on laptop" in shown.output


def test_assumptions_without_a_simulation_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["plan", "--assume", "engines=2"])
    assert isinstance(result.exception, SpecError)
    assert "--simulate" in str(result.exception)


@pytest.mark.parametrize("value", ["", "many", "1e99", "nan", "-1", "2.5"])
def test_an_assumption_that_makes_no_sense_is_refused_by_name(value: str) -> None:
    result = CliRunner().invoke(app, ["plan", "--simulate", "--assume", f"engines={value}"])
    assert isinstance(result.exception, SpecError), result.exception
    assert str(result.exception).startswith("engines: Input should be ")
    assert "mtbf" not in str(result.exception)
