"""Drafts in a real SGLang: trained and exported here, served as the card says, in the very rounds of decoding here.

DEEPSPEC_SGLANG is the path of a `sglang` program, in an environment of its own. On a machine without a card
`tests/soak/sglang_on_cpu` stands in for its kernels, of which PyPI has no build for CPUs, and Triton's are interpreted:
`docs/formats/exports.md` says what that proves.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deepspec.artifacts import Artifact
from deepspec.formats.exports import read_index, write_form
from deepspec.formats.recipe import AlgorithmName
from deepspec.placement import Endpoint
from deepspec.release.card import Proposed, serving
from deepspec.serving.check import started_without
from deepspec.serving.client import ServingClient
from infra.engines.managed import ManagedEngines, Served, start_engines
from tests.given.published import chain
from tests.given.targets import shipped, tiny
from tests.soak.taught import LONGEST, QUESTIONS, answers_of, check_alike, decoded, rounds_of, teach

SGLANG = os.environ.get("DEEPSPEC_SGLANG")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(SGLANG is None, reason="set DEEPSPEC_SGLANG to a sglang program (pip install sglang)"),
]

ALIKE = "--dtype float32 --disable-radix-cache --max-total-tokens 4096 --mem-fraction-static 0.3 --skip-server-warmup"
"""In fp32 greedy rounds are the very same."""
ON_CPU = (
    "--device cpu --prefill-attention-backend intel_amx --decode-attention-backend intel_amx --disable-cuda-graph "
    "--disable-overlap-schedule --grammar-backend none"
)
OF_BLOCKS = " --speculative-draft-attention-backend triton"
STANDING_IN = Path(__file__).parent / "sglang_on_cpu"
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "rope_parameters": shipped.ROPE,
    "initializer_range": 0.05, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    "layer_types": ["full_attention"] * 4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of draft, and how it is trained."""

    algorithm: AlgorithmName
    draft: Mapping[str, Any]
    objective: Mapping[str, Any]
    slots: int
    layers: tuple[int, ...] | None = (0, 1, 2, 4)


ANCHORS = {"num_anchors": 4}
NEAR = 5
"""Positions of Eagle3's window; the shortest prompt has 23."""
KINDS = {
    "dspark": Kind(
        algorithm="dspark",
        draft={"num_layers": 1, "block_size": 3, "markov_rank": 4, "window": 16},
        objective=ANCHORS,
        slots=3,
    ),
    "dflash": Kind(
        algorithm="dflash",
        draft={"num_layers": 1, "block_size": 4, "layout": "fill_in"},
        objective=ANCHORS,
        slots=3,
    ),
    "dflash2": Kind(
        algorithm="dflash2",
        draft={"num_layers": 1, "block_size": 4, "selector_rank": 8, "selector_top_k": 4},
        objective=ANCHORS,
        slots=3,
    ),
    "eagle3": Kind(
        algorithm="eagle3", draft={"shape": "target", "norms": "eagle3.1"}, objective={"ttt_length": 3}, slots=3
    ),
    "eagle3_near": Kind(
        algorithm="eagle3", draft={"shape": "target", "window": NEAR}, objective={"ttt_length": 3}, slots=3
    ),
    "mtp": Kind(algorithm="mtp", draft={}, objective={"ttt_length": 3}, slots=3, layers=None),
}


def write_llama(folder: Path) -> Path:
    """Write a target of Llama's family that was taught the rows of the chain; Triton's attention wants heads of 16."""
    tiny.write_target(folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.05})
    model = LlamaForCausalLM(config)
    teach(model)
    model.save_pretrained(folder)
    return folder


def parts(kind: Kind, folder: Path) -> dict[str, Any]:
    """Return the plan: a draft trained so little that not all that it drafts is accepted."""
    plain = chain.plan_parts(folder)
    train = plain["train"] | {
        "draft": {"algorithm": kind.algorithm, **kind.draft}, "objective": dict(kind.objective), "steps": 60,
        "learning_rate": 3e-3, "global_batch": 8,
    }  # fmt: skip
    cache = {**plain["cache"], "layers": kind.layers and list(kind.layers)}
    evaluate = plain["evaluate"] | {"untrained_samples": 1, "calibration_samples": 0, "max_new_tokens": LONGEST}
    return {**plain, "cache": cache, "train": train, "evaluate": evaluate, "export": {"forms": ["deepspec", "sglang"]}}


def words(kind: Kind, made: Mapping[str, Artifact], form: Path) -> str:
    """Return the options of the card's command, as they would be typed beside the form."""
    exported = read_index(made["export"]).forms["sglang"]
    told = serving("sglang", "TARGET", exported, Proposed(algorithm=kind.algorithm, tokens=kind.slots))
    _, options = told.replace("\\\n", " ").split(" --model-path ")
    return options.partition(" ")[2].replace("./sglang", str(form))


def laid_out(kind: Kind, made: Mapping[str, Artifact], folder: Path) -> tuple[Path, Path]:
    """Return what is served as the target, and the form; heads lie in a copy of the target's folder."""
    form, target = folder / "sglang", folder / "target"
    if kind.algorithm != "mtp":
        write_form(made["export"], "sglang", form)
        return target, form
    write_form(made["export"], "sglang", Path(shutil.copytree(target, form)))
    told = json.loads((form / "config.json").read_text())  # a key that released configs have
    (form / "config.json").write_text(json.dumps({**told, "full_attention_interval": 1}))
    return form, form


def engine(folder: Path, options: str, logs: Path) -> AbstractContextManager[tuple[Endpoint, ...]]:
    """Start an SGLang with more options."""
    logs.mkdir(parents=True)
    own = "" if torch.cuda.is_available() else ON_CPU + (OF_BLOCKS if "block-size" in options else "")
    engines = ManagedEngines(kind="sglang", slots=4, count=1, arguments=f"{ALIKE} {own} {options}")
    return start_engines(engines, Served(name="tiny", folder=folder, context=256), logs)


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the SGLang that DEEPSPEC_SGLANG names found by its name, and serve without the hub, on a CPU if need be."""
    monkeypatch.setenv("PATH", f"{Path(os.environ['DEEPSPEC_SGLANG']).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if torch.cuda.is_available():
        return
    plugin = tmp_path / "plugin" / "sglang_on_cpu-0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang-on-cpu\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text("[sglang.srt.plugins]\non_cpu = sglang_on_cpu:hooks\n")
    monkeypatch.setenv("PYTHONPATH", f"{STANDING_IN}:{plugin.parent}")
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


async def missed_by(endpoint: Endpoint, made: Mapping[str, Artifact]) -> list[str]:
    """Return the options that the draft wants and an engine was started without."""
    async with ServingClient(endpoint) as client:
        return await started_without(client, read_index(made["export"]).forms["sglang"].options)


@pytest.mark.parametrize("name", KINDS)
def test_sglang_takes_the_very_rounds_of_decoding_here(
    name: str, tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    monkeypatch.setattr(chain, "QUESTIONS", QUESTIONS)
    target: Callable[[Path], Path] = write_llama
    if kind.algorithm == "mtp":
        target = partial(shipped.write_taught, teach=teach, sizes=SIZES)
    made = chain.run_chain(tmp_path, target=target, parts=partial(parts, kind))
    asked, (folder, form) = decoded(made, tmp_path), laid_out(kind, made, tmp_path)
    with engine(folder, words(kind, made, form), tmp_path / "drafting") as (endpoint,):
        answers, missed = asyncio.run(answers_of(endpoint, asked)), asyncio.run(missed_by(endpoint, made))
    assert missed == []
    with engine(folder, "", tmp_path / "plain") as (endpoint,):
        plains = asyncio.run(answers_of(endpoint, asked))
    check_alike("SGLang", answers, plains, asked, exact=True)


def test_sglang_takes_other_rounds_where_it_is_told_another_window_or_none(
    tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail."""
    kind = KINDS["eagle3_near"]
    monkeypatch.setattr(chain, "QUESTIONS", QUESTIONS)
    made = chain.run_chain(tmp_path, target=write_llama, parts=partial(parts, kind), last="evaluate")
    asked = decoded(made, tmp_path)
    assert min(len(each.prompt) for each in asked) > 4 * NEAR
    folder, form = laid_out(kind, made, tmp_path)
    told, option = words(kind, made, form), " --speculative-draft-window-size"
    assert f"{option} {NEAR - 1}" in told
    for other in ("", f"{option} {NEAR - 2}", f"{option} {NEAR}"):
        logs = tmp_path / f"told{other.rpartition(' ')[2]}"
        with engine(folder, told.replace(f"{option} {NEAR - 1}", other), logs) as (endpoint,):
            answers, missed = asyncio.run(answers_of(endpoint, asked)), asyncio.run(missed_by(endpoint, made))
        assert missed == [f"{option} {NEAR - 1}".strip()]
        apart = sum(there != len(here.decoded.rounds) for there, here in zip(rounds_of(answers), asked, strict=True))
        print(f"{other or 'none'}: other rounds in {apart} of {len(asked)} answers")
        assert apart > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing stands in for SGLang's kernels where there is a card")
@pytest.mark.parametrize("more", [0, 1, -1])
def test_what_stands_in_counts_a_window_as_the_triton_kernel_of_sglang_does(more: int) -> None:
    python = str(Path(os.environ["DEEPSPEC_SGLANG"]).parent / "python")
    environment = {**os.environ, "PYTHONPATH": str(STANDING_IN), "TRITON_INTERPRET": "1"}
    command = [python, str(STANDING_IN / "beside_triton.py"), str(more)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    apart = [json.loads(line)["apart"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(apart) == 4
    assert max(apart) < 1e-5 if more == 0 else min(apart) > 1e-2
