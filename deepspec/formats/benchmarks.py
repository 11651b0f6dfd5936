"""Benchmarks: lists of questions of one or more turns, from the Hugging Face hub or from files.

A file holds one question a row, `{"turns": [text, …]}`, already worded as the target shall read it. What comes from
the hub is worded here. A benchmark's digest names its exact rows: a file's checksum, or a dataset's revision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from deepspec.disk import checksum
from deepspec.errors import SourceError, UnknownNameError
from deepspec.lines.rows import SUFFIXES
from deepspec.specs import Spec

HUB = "hf:"
"""A digest that begins so names a dataset at a revision; others are checksums of files."""

MATHS = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CODE = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```"


class Benchmark(Spec):
    """A benchmark, exactly."""

    name: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HubBenchmark:
    """Where a benchmark lies on the hub, and how its rows become questions."""

    dataset: str
    subset: str | None = None
    split: str
    files: str | None = None
    """JSON files of the repository, a pattern: for one that `datasets` cannot load by itself."""
    size: int
    """Questions taken by default."""
    turns: Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundBenchmarks:
    """Benchmarks with their digests, and where they lie."""

    benchmarks: tuple[Benchmark, ...]
    locations: Mapping[str, str]
    """For `Placement.locations`."""


def _worded(pattern: str, key: str) -> Callable[[Mapping[str, Any]], list[str]]:
    return lambda row: [pattern.format(row[key])]


def _alpaca(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]]


HUB_BENCHMARKS: Mapping[str, HubBenchmark] = {
    "gsm8k": HubBenchmark(
        dataset="openai/gsm8k", subset="main", split="test", size=500, turns=_worded(MATHS, "question")
    ),
    "math500": HubBenchmark(dataset="HuggingFaceH4/MATH-500", split="test", size=500, turns=_worded(MATHS, "problem")),
    "aime25": HubBenchmark(dataset="MathArena/aime_2025", split="train", size=30, turns=_worded(MATHS, "problem")),
    "humaneval": HubBenchmark(dataset="openai/openai_humaneval", split="test", size=164, turns=_worded(CODE, "prompt")),
    "mbpp": HubBenchmark(
        dataset="google-research-datasets/mbpp",
        subset="sanitized",
        split="test",
        size=256,
        turns=_worded("{}", "prompt"),
    ),
    "livecodebench": HubBenchmark(
        dataset="livecodebench/code_generation_lite",
        split="train",
        files="test*.jsonl",
        size=500,
        turns=_worded("Write a Python program that solves this problem:\n{}", "question_content"),
    ),
    "mt-bench": HubBenchmark(
        dataset="HuggingFaceH4/mt_bench_prompts", split="train", size=80, turns=lambda row: list(row["prompt"])
    ),
    "alpaca": HubBenchmark(dataset="tatsu-lab/alpaca", split="train", size=500, turns=_alpaca),
    "arena-hard-v2": HubBenchmark(
        dataset="lmarena-ai/arena-hard-auto",
        split="train",
        files="data/arena-hard-v2.0/question.jsonl",
        size=500,
        turns=_worded("{}", "prompt"),
    ),
}
"""The nine benchmarks of the published results."""


def find_benchmarks(folder: Path | None = None, names: Sequence[str] | None = None) -> FoundBenchmarks:
    """Return benchmarks with their digests.

    Args:
        folder: of `NAME.jsonl` files; None takes the benchmarks from the hub.
        names: which ones; None: every file, or all nine.

    Raises:
        SourceError: the folder has no benchmark, or the hub cannot be reached.
        UnknownNameError: a name that is not among them.
    """
    found = _on_hub(names) if folder is None else _in_folder(folder, names)
    benchmarks = tuple(Benchmark(name=name, digest=digest) for name, (digest, _) in sorted(found.items()))
    return FoundBenchmarks(benchmarks=benchmarks, locations=dict(found.values()))


def _in_folder(folder: Path, names: Sequence[str] | None) -> dict[str, tuple[str, str]]:
    """Return name -> (digest, place) of the files in a folder."""
    if not folder.is_dir():
        raise SourceError("no such folder; wanted NAME.jsonl files with rows {'turns': [...]}", folder)
    files = {path.name.split(".jsonl")[0]: path for path in sorted(folder.iterdir()) if _is_rows(path)}
    if not files:
        raise SourceError("no benchmark in this folder; wanted NAME.jsonl files with rows {'turns': [...]}", folder)
    chosen = _named(names, files)
    return {name: (checksum(files[name]), str(files[name].resolve())) for name in chosen}


def _is_rows(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _on_hub(names: Sequence[str] | None) -> dict[str, tuple[str, str]]:
    """Return name -> (digest, digest): the revision is looked up, the place is the digest itself."""
    found = {}
    for name in _named(names, HUB_BENCHMARKS):
        dataset = HUB_BENCHMARKS[name].dataset
        try:
            revision = HfApi().dataset_info(dataset).sha
        except (HTTPError, OSError) as error:
            raise SourceError(
                f"benchmark {name}: the hub does not tell the revision of {dataset}: {error}; "
                "check the network, or give a folder of benchmark files (--benchmarks-dir)"
            ) from error
        digest = f"{HUB}{dataset}@{revision}"
        found[name] = (digest, digest)
    return found


def _named(names: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    for name in names or ():
        if name not in known:
            raise UnknownNameError("benchmark", name, known)
    return list(known if names is None else names)
