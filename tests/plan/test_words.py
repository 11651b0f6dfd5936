"""A plan in words: times as people say them, decoding against what was measured, and the cheapest way that fits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from deepspec.errors import BudgetError, SpecError, UnknownNameError
from deepspec.plan import presets
from deepspec.plan.budget import plan_estimate
from deepspec.plan.cost.decoding import ACCEPTED, decoding_hours, pass_seconds
from deepspec.plan.cost.flops import train_flops
from deepspec.plan.cost.found import Costs
from deepspec.plan.cost.given import Sizes, Workload
from deepspec.plan.cost.table import duration
from deepspec.plan.words import fits, headline, machine_rows, source_rows, stage_rows, usd
from deepspec.ranges import Range
from deepspec.store import Store
from deepspec.target_cache.sizes import Captured
from tests.given.some import some


def estimated(hardware: str, *overrides: str, target: str = "qwen3-4b", dataset: str = "open-perfectblend") -> Costs:
    parts = [presets.target(target), presets.load("datasets", dataset)]
    return some(plan_estimate(presets.build_plan(parts, [f"limits.hardware={hardware}", *overrides])))


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        (40 / 3600, "40 s"), (0.2, "12 min"), (2.5, "2.5 h"), (41.2, "41 h"), (71, "71 h"), (120, "5 days"),
        (24 * 59, "59 days"), (1_074_886.8, "over 60 days"),
    ],
)  # fmt: skip
def test_a_time_is_said_as_people_say_it(hours: float, told: str) -> None:
    assert duration(hours) == told


def test_money_is_said_as_people_say_it() -> None:
    assert [usd(value) for value in (0, 2.5, 1371.6)] == ["0 USD", "2.50 USD", "1,372 USD"]


def test_decoding_is_what_was_measured_on_an_h200() -> None:
    """Of a 4B target 4.67 ms a plain token, within an eighth, 6.90 ms a DSpark round, within a quarter; weights 1.9."""
    card = presets.hardware("h200")
    memory, launch = card.device_gb_per_second, card.layer_ms
    plain = pass_seconds(36, 2 * 4.02e9, memory, launch)
    draft = pass_seconds(5, 2 * 0.5e9, memory, launch)
    assert plain == pytest.approx(0.00467, rel=1 / 8)
    assert plain + draft == pytest.approx(0.0069, rel=1 / 4)
    assert pass_seconds(36, 2 * 4.02e9, memory, 0) == pytest.approx(0.0019, rel=1 / 8)


@pytest.mark.parametrize(
    ("tokens", "draft_layers", "positions", "ms"),
    [(4096, 5, 512, (58.5, 51.1, 49.8)), (2048, 1, 40960, (75.8,))],
    ids=["blocks: DSpark of one row, of four, DFlash", "Eagle3"],
)
def test_a_training_step_is_what_was_measured_on_an_h200(
    tokens: int, draft_layers: int, positions: int, ms: tuple[float, ...]
) -> None:
    """A sample at the shapes of docs/log.md, 2026-11-27, all but 32 of its tokens supervised: within three tenths."""
    known, rows = presets.target("qwen3-4b")["target"]["sizes"], Range.around(tokens - 32)
    what = Captured(
        samples=1,
        tokens=Range.around(tokens),
        supervised=rows,
        last_rows=rows,
        layers=5,
        hidden=2560,
        part_bytes=1 << 30,
    )
    work = Workload(
        captured=what, passes=1, draft_layers=draft_layers, anchors=positions, block=7, questions=0, question_tokens=1
    )
    took = train_flops(Sizes.model_validate(known), work).mid / (presets.hardware("h200").train_tflops * 1e9)
    for measured in ms:
        assert took == pytest.approx(measured, rel=0.3)


def test_decoding_is_what_was_measured_on_two_cores() -> None:
    """SmolLM2-135M in fp32: 14.9 plain tokens a second."""
    machine = presets.hardware("laptop")
    took = pass_seconds(30, 4 * 134_515_008, machine.device_gb_per_second, machine.layer_ms)
    assert 1 / took == pytest.approx(14.9, rel=0.05)


def test_few_accepted_tokens_take_longest() -> None:
    """3600 tokens in rounds of a second: 3 tokens a round are 1200 rounds, a third of an hour."""
    found = decoding_hours(Range.around(3600), 1.0)
    assert (found.low, found.mid, found.high) == pytest.approx((1 / ACCEPTED.high, 1 / 3, 1 / ACCEPTED.low))


def test_an_evaluation_takes_hours_whatever_the_card() -> None:
    """6,060 questions of some 512 tokens and 64 held-out ones at two temperatures, 3 a round, and 8 token by token: a
    million rounds of 41 layers × 0.13 ms. Before that, 6,196 prompts of 260 tokens are read in 5 seconds."""
    rounds = (6060 + 2 * 64) * 1024 * 0.5 / 3 + 8 * 1024 * 0.5
    read = 6196 * 260 * 2 * 4022468096 / (8 * 320e12)
    found = estimated("h100x8").hours["evaluate"]
    assert found.mid == pytest.approx((rounds * 41 * 0.13e-3 + read) / 3600)
    assert estimated("b200").hours["evaluate"].mid == pytest.approx(found.mid, rel=0.01), (
        "kernels take their time on every card"
    )


def test_several_devices_of_a_preset_are_named_with_it() -> None:
    one, eight = presets.hardware("h100"), presets.hardware("h100x8")
    assert eight == one.but(devices=8)
    with pytest.raises(UnknownNameError, match="unknown hardware preset 'h900x8'; known: a100"):
        presets.hardware("h900x8")
    with pytest.raises(SpecError, match=r"devices: .*greater than 0"):
        presets.hardware("h100x0")


def test_the_cheapest_way_is_told_with_its_options() -> None:
    told = headline("h100x8", estimated("h100x8"), "cache", None)
    assert told[0].startswith("on h100x8: about 42 h (29 h to 59 h), 1,443 USD, 25.5 TB")
    assert told[1:] == (
        "cheapest way that fits: train.source=online with cache.codec=none, instead of train.source=cache;",
        "cache and training take",
        "    online: 36 h, 723 USD, 6.83 GB",
        "    cache: 39 h, 1,372 USD, 25.5 TB",
        "    the same command with --set train.source=online --set cache.codec=none",
    )
    cheap = headline("h100x8", estimated("h100x8", "train.source=online", "cache.codec=none"), "online", None)
    assert cheap[1:] == ("this is the cheapest way that fits: train.source=online",)


def test_the_cheapest_way_takes_back_what_is_said_of_engines() -> None:
    """A cache of tokens only asks no engine for states: the command that is named is one that is taken."""
    settings = ["cache.states=vllm", "cache.while_answering=true", "cache.keep_states=2TB"]
    plan = presets.build_plan([presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")], settings)
    advice = headline("h100x8", estimated("h100x8"), "cache", None, plan.cache)[-1]
    told = re.findall(r"--set (\S+)", advice)
    assert told[2:] == ["cache.states=transformers", "cache.while_answering=false", "cache.keep_states=null"]
    taken = presets.build_plan(
        [presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")], [*settings, *told]
    )
    assert (taken.train.source, taken.cache.codec, taken.cache.states) == ("online", "none", "transformers")


@pytest.mark.parametrize(
    ("machine", "devices", "there"),
    [("l40s", 2, ", and there is 1"), ("l40sx2", 2, ""), ("rtx4090x2", 3, ", and there are 2"), ("h200", 1, None)],
)
def test_a_target_that_no_device_holds_is_said_to_lie_over_several(
    machine: str, devices: int, there: str | None
) -> None:
    """Qwen3-32B is 65.5 GB in bf16. An L40S has 48 GB, an RTX 4090 24, an H200 141."""
    cost = estimated(machine, "prepare.max_samples=1000", target="qwen3-32b")
    told = [line for line in headline(machine, cost, "cache", None) if "weights" in line]
    wanted = (
        f"the target's weights take 65.5 GB in bf16, more than one device has: they lie over {devices} or more "
        f"(--device spread; an engine has its own option){there}"
    )
    assert (cost.devices_for_target, told) == (devices, [] if there is None else [wanted])


def test_a_target_that_is_quantised_lies_over_as_few_devices_as_its_bits_allow() -> None:
    """gpt-oss-120b: 116.8 B weights of 4.47 bits are 65.3 GB, which an H100 of 80 GB holds, and two L40S of 48 GB."""
    found = {name: estimated(name, "prepare.max_samples=1000", target="gpt-oss-120b") for name in ("h100", "l40sx2")}
    assert {name: cost.devices_for_target for name, cost in found.items()} == {"h100": 1, "l40sx2": 2}
    assert found["h100"].weights_bytes == pytest.approx(116_829_156_672 * 4.47 / 8)
    told = [line for line in headline("l40sx2", found["l40sx2"], "cache", None) if "weights" in line]
    assert told == [
        "the target's weights take 65.3 GB at 4.5 bits each, more than one device has: they lie over 2 or more "
        "(--device spread; an engine has its own option)"
    ]


def test_money_comes_before_time() -> None:
    """On an L40S online takes nine days longer, and 400 USD less."""
    told = headline("l40s", estimated("l40s"), "cache", None)
    assert told[3:5] == ("    online: 32 days, 694 USD, 6.83 GB", "    cache: 23 days, 1,098 USD, 25.5 TB")


def test_the_advice_can_be_followed() -> None:
    """What it says to add makes a plan, and the one that it said."""
    advice = headline("h100x8", estimated("h100x8"), "cache", None)[-1]
    settings = [word for word in advice.split() if "=" in word]
    assert len(settings) == 2
    assert duration(estimated("h100x8", *settings).hours["train"].mid) == "36 h"


def test_what_does_not_fit_the_store_is_not_advised() -> None:
    told = headline("laptop", estimated("laptop", target="smollm2-135m", dataset="demo"), "cache", 1000)
    assert "take fewer samples" in told[1]


def test_a_machine_that_cannot_is_told_without_a_number() -> None:
    cost = estimated("laptop")
    assert not fits(cost)
    told = headline("laptop", cost, "cache", None)
    assert told[0] == "on laptop: does not fit, it would take over 60 days"
    (row,) = machine_rows({"laptop": cost})
    assert (row["time"], row["money"]) == ("does not fit", "")


def test_stages_and_sources_are_rows() -> None:
    cost, machine = estimated("h100x8"), presets.hardware("h100x8")
    rows = {row["stage"]: row for row in stage_rows(cost, machine)}
    assert list(rows) == ["regenerate", "cache", "train", "evaluate", "all, with storage and requests"]
    assert (rows["train"]["time"], rows["train"]["money"]) == ("35 h", "708 USD")
    assert [row["hidden states"] for row in source_rows(cost)] == ["cache", "online", "rolling"]


def test_programs_read_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    words = ["plan", "--json", "--hardware", "laptop", "--hardware", "h100"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["target"], found["algorithm"], set(found["machines"])) == (
        "smollm2-135m",
        "dspark",
        {"laptop", "h100"},
    )
    laptop = found["machines"]["laptop"]
    assert laptop["fits"] is True
    assert {"low", "mid", "high"} == set(laptop["hours"]["train"])


def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float) -> tuple[Result, dict[str, Any]]:
    """Return what the demo's plan says on two machines, with a limit of hours."""
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    words = ["plan", "--json", "--hardware", "laptop", "--hardware", "h100", "--set", f"limits.hours={hours}"]
    result = CliRunner().invoke(app, words)
    return result, json.loads(result.stdout)["machines"]


def hours_of(machine: dict[str, Any]) -> float:
    return float(sum(value["mid"] for value in machine["hours"].values()))


def test_limits_are_held_against_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halfway between the hours of both, the first named passes the limit and the second does not."""
    _, machines = limited(tmp_path, monkeypatch, 1e6)
    assert [each["over_limit"] for each in machines.values()] == [None, None]
    laptop, h100 = map(hours_of, machines.values())
    assert h100 < laptop
    result, machines = limited(tmp_path, monkeypatch, (laptop + h100) / 2)
    assert result.exit_code == 0
    assert machines["h100"]["over_limit"] is None
    assert machines["laptop"]["over_limit"].startswith("needs about")
    assert "over a limit: on laptop the plan needs about" in result.stderr


def test_a_plan_that_no_machine_does_within_its_limits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, machines = limited(tmp_path, monkeypatch, 1e-6)
    assert all(each["over_limit"] for each in machines.values())
    assert isinstance(result.exception, BudgetError)
    assert {"on laptop the plan", "on h100 the plan"} <= {
        each.partition(" needs")[0] for each in str(result.exception).split("; ")
    }


def test_what_all_machines_lack_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1)
    result, _ = limited(tmp_path, monkeypatch, 1e6)
    assert str(result.exception).startswith("on laptop and h100 the plan needs about")
    assert str(result.exception).count("the plan needs") == 1
