"""Targets that no table names, through the whole pipeline: latent attention, and linear beside full attention."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact
from deepspec.catalog import catalog
from deepspec.families import is_general
from deepspec.formats.scores import SCORES, read_scores
from deepspec.store import Store
from tests.given.published.chain import plan_parts, run_chain, write_inputs
from tests.given.targets import tiny, zoo

TYPES = ("qwen3_next", "deepseek_v3")
ROOT = Path(__file__).resolve().parents[2]


def written(model_type: str, place: Path) -> Path:
    """Write a tiny random target of a type; return where."""
    zoo.build(model_type).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [tiny.IM_END, tiny.END_OF_TEXT]}))
    return place


def settings(parts: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield a plan's parts as words of the command line."""
    for name, value in parts.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{path}{name}.")
        else:
            yield from ("--set", f"{path}{name}={json.dumps(value)}")


@pytest.mark.soak
@pytest.mark.parametrize("model_type", TYPES)
def test_prompts_become_a_release(model_type: str, tmp_path: Path) -> None:
    made: dict[str, Artifact] = run_chain(tmp_path, target=partial(written, model_type))
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert is_general(config)
    assert made["cache"].counts["target"]["proof"] == "general 1"
    assert made["cache"].counts["embedding_scale"] == 1.0
    losses = [json.loads(line)["loss"] for line in made["train"].read_bytes("metrics.jsonl").decode().splitlines()]
    assert losses[-1] < losses[0]
    assert made["export"].counts["parity"]
    assert read_scores(made["evaluate"].path(SCORES)).is_lossless
    assert "speed.json" in made["benchmark"].names()


@pytest.mark.soak
@pytest.mark.parametrize("model_type", TYPES)
def test_a_command_takes_answers_to_a_release(model_type: str, tmp_path: Path) -> None:
    """`deepspec run` with nothing but a folder that holds the target: a server of its own, a process a stage."""
    write_inputs(tmp_path, partial(written, model_type))
    parts = {name: part for name, part in plan_parts(tmp_path).items() if name not in ("target", "dataset")}
    command = [sys.executable, "-m", "cli.main", "run", "--target", str(tmp_path / "target"), "--answers",
               str(tmp_path / "answers.jsonl"), "--benchmarks-dir", str(tmp_path / "benchmarks"), "--threads", "1",
               "--root", str(tmp_path / "store"), *settings(parts)]  # fmt: skip
    outside = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    environment = {**outside, "DEEPSPEC_DATA_DIR": str(tmp_path / "data"), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = {entry.kind: entry.manifest for entry in catalog(Store(tmp_path / "store")) if entry.manifest}
    assert {"prompts", "answers", "target_cache", "draft", "exports", "scores", "speed", "release"} <= made.keys()
    assert made["target_cache"].counts["target"]["proof"] == "general 1"
    assert made["exports"].counts["parity"] is True
    assert "accepted length" in done.stdout + done.stderr
