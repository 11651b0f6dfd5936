"""MTP heads from prompts to release: the heads that a target ships, tuned on its own answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.checkpoint.draft import load_draft
from deepspec.disk import checksum
from deepspec.errors import TargetError
from deepspec.formats.exports import read_index
from deepspec.formats.tensor_heads import read_heads
from deepspec.placement import Placement
from deepspec.plan.budget import workload
from deepspec.plan.checks import outcomes
from deepspec.plan.known import Known
from deepspec.plan.presets import build_plan
from deepspec.plan.resolve import sizes_of
from deepspec.store import Store
from deepspec.target.heads import read_target
from deepspec.target_cache.facts import CacheFacts
from tests.given.published import chain
from tests.given.targets import shipped
from tests.given.targets.gguf_qwen35 import write_gguf

FORMS = ("deepspec", "vllm", "llama.cpp")
LAST = 4
"""The state behind the final norm of a target of four layers."""


def parts(folder: Path) -> dict[str, Any]:
    """Return the plan of a tiny chain, with heads in the place of a draft."""
    plain = chain.plan_parts(folder)
    train = plain["train"] | {
        "draft": {"algorithm": "mtp"}, "objective": {"ttt_length": 2}, "steps": 20, "learning_rate": 3e-3,
    }  # fmt: skip
    cache = {key: value for key, value in plain["cache"].items() if key != "layers"}
    evaluate = plain["evaluate"] | {"untrained_samples": 1, "calibration_samples": 0}
    export = {"forms": ["deepspec", "vllm"]}
    return {**plain, "cache": cache, "train": train, "evaluate": evaluate, "export": export}


def served_from(folder: Path) -> Path:
    """Return a GGUF file that lies elsewhere than the target."""
    return folder / "served.gguf"


def parts_with_gguf(folder: Path) -> dict[str, Any]:
    told = parts(folder)
    return {**told, "export": {"forms": [*told["export"]["forms"], "llama.cpp"], "gguf": str(served_from(folder))}}


def write_both(folder: Path) -> Path:
    """Write a target, and its GGUF file beside its folder."""
    target = shipped.write_target(folder, "qwen3_5")
    write_gguf(target).rename(served_from(folder.parent))
    return target


def known(folder: Path, *overrides: str) -> Known:
    plan = build_plan([parts(folder)], overrides)
    return Known(
        plan=plan, placement=Placement(scratch=folder / "scratch"), store=Store(folder / "store"),
        models=folder / "models", machine=None,
    )  # fmt: skip


def test_heads_are_tuned_from_answers_to_a_release(tmp_path: Path) -> None:
    made = chain.run_chain(tmp_path, target=write_both, parts=parts_with_gguf)
    facts = CacheFacts.model_validate(made["cache"].counts)
    assert facts.layers == (LAST,)
    counts = made["train"].counts
    assert (counts["algorithm"], counts["layers"]) == ("mtp", [LAST])
    assert counts["held_out"]["loss"] < counts["untrained"]["loss"]
    draft = load_draft(made["train"].path("config.json").parent)
    before = shipped.heads("qwen3_5")["mtp.fc.weight"]
    assert not torch.equal(draft.fc.weight, before)
    torch.testing.assert_close(draft.fc.weight, before, atol=0.2, rtol=0)  # tuned, not made anew
    scores = json.loads(made["evaluate"].read_bytes("scores.json"))
    assert scores["lossless"] is None or scores["overall"]["0.0"]["rounds"] > 0
    index = read_index(made["export"])
    assert {name: form.method for name, form in index.forms.items()} == dict.fromkeys(FORMS, "mtp")
    assert made["export"].manifest.spec["gguf"] == checksum(served_from(tmp_path))
    assert set(index.forms["vllm"].files) == {"config.json", shipped.SECOND}
    assert index.parity is not None
    assert all(each.passed for each in index.parity)
    assert any("TARGET_WITH_THESE_FILES" in made["release"].read_bytes(name).decode() for name in readable(made))


def readable(made: dict[str, Any]) -> list[str]:
    return [name for name in made["release"].names() if name.endswith(".md")]


def test_a_plan_counts_the_one_layer_that_heads_read(tmp_path: Path) -> None:
    chain.write_inputs(tmp_path)
    target = read_target(shipped.write_target(tmp_path / "shipped"))
    plan = build_plan([parts(tmp_path)])
    captured = workload(plan, sizes_of(target)).captured
    assert (captured.layers, captured.hidden) == (1, 32)


def test_a_target_without_heads_is_named_before_anything_is_spent(tmp_path: Path) -> None:
    chain.write_inputs(tmp_path)
    found = {each.name: each for each in outcomes(known(tmp_path))}
    assert found["layers"].state == "ok"
    assert isinstance(found["draft"].error, TargetError)
    assert f"target {tmp_path / 'target'} ships no MTP heads" in found["draft"].detail


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_5"])
def test_a_target_with_heads_passes_the_checks(kind: str, tmp_path: Path) -> None:
    chain.write_inputs(tmp_path)
    (tmp_path / "target").rename(tmp_path / "other")
    target = shipped.write_target(tmp_path / "target", kind)
    assert any(name.startswith("mtp.") for name in read_heads(target))
    found = {each.name: each for each in outcomes(known(tmp_path))}
    assert (found["layers"].detail, found["draft"].detail) == (f"[{LAST}]", "mtp, 1 layers")


def with_heads(folder: Path) -> None:
    chain.write_inputs(folder)
    (folder / "target").rename(folder / "other")
    shipped.write_target(folder / "target", "qwen3")


@pytest.mark.parametrize("layers", [(), (f"cache.layers=[{LAST}]",), (f"cache.layers=[{LAST - 1}]",)])
def test_an_engine_gives_what_heads_read(layers: tuple[str, ...], tmp_path: Path) -> None:
    with_heads(tmp_path)
    found = {each.name: each for each in outcomes(known(tmp_path, "cache.states=vllm", *layers))}
    assert found["states"].detail == "vllm: an engine that the run starts"


def test_heads_that_no_engine_reads_rightly_are_told_of_by_a_plan(tmp_path: Path) -> None:
    with_heads(tmp_path)
    found = {each.name: each for each in outcomes(known(tmp_path, f"cache.layers=[{LAST - 1}]"))}
    assert found["layers"].told == (
        f"heads that read layers [{LAST - 1}] cannot be written for vllm, which hand them the state behind the final "
        f"norm; with cache.layers=[{LAST}], the default, they can",
    )


def test_a_gguf_file_of_another_target_is_named_before_anything_is_spent(tmp_path: Path) -> None:
    with_heads(tmp_path)
    file = write_gguf(shipped.write_target(tmp_path / "hybrid", "qwen3_5"))
    told = f"export.gguf={file}"
    assert {each.name: each for each in outcomes(known(tmp_path, told))}["target"].state == "ok"
    config = tmp_path / "target" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    found = {each.name: each for each in outcomes(known(tmp_path, told))}["target"]
    assert (
        "target.gguf, a GGUF file of another target: its block_count is 4, wanted 3; export.gguf wants" in found.detail
    )
