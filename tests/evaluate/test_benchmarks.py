"""Benchmarks: which rows are asked, and how they are worded."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deepspec.errors import SourceError, UnknownNameError
from deepspec.formats.benchmarks import HUB_BENCHMARKS, Benchmark, find_benchmarks
from deepspec.formats.questions import read_questions

DATA = Path(os.environ.get("DEEPSPEC_DATA", "/nonexistent")) / "benchmarks"


def folder(path: Path, rows: int = 20) -> Path:
    lines = "".join(
        json.dumps({"turns": [f"question {row}\u2028more"]}, ensure_ascii=False) + "\n" for row in range(rows)
    )
    (path / "own.jsonl").write_text(lines, encoding="utf-8")
    return path


def test_the_table_has_the_published_sizes() -> None:
    assert {name: each.size for name, each in HUB_BENCHMARKS.items()} == {
        "gsm8k": 500,
        "math500": 500,
        "aime25": 30,
        "humaneval": 164,
        "mbpp": 256,
        "livecodebench": 500,
        "mt-bench": 80,
        "alpaca": 500,
        "arena-hard-v2": 500,
    }


def test_hub_rows_are_worded_as_the_given_files_are() -> None:
    maths = HUB_BENCHMARKS["gsm8k"].turns({"question": "1+1?"})
    assert maths == ["1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."]
    (code,) = HUB_BENCHMARKS["humaneval"].turns({"prompt": "def f():\n"})
    assert code == (
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n\n```"
    )
    assert HUB_BENCHMARKS["mt-bench"].turns({"prompt": ["a", "b"]}) == ["a", "b"]
    assert HUB_BENCHMARKS["alpaca"].turns({"instruction": "say", "input": "x"}) == ["say\nx"]


SCHEMAS: dict[str, tuple[str, list[dict[str, object]]]] = {
    "gsm8k": ("main/test-00000-of-00001.parquet", [{"question": "1+1?", "answer": "#### 2"}]),
    "math500": ("test.jsonl", [{"problem": "x?", "solution": "1", "answer": "1", "subject": "Algebra", "level": 1}]),
    "aime25": ("data/train-00000-of-00001.parquet", [{"problem_idx": 1, "problem": "y?", "answer": 70}]),
    "humaneval": (
        "openai_humaneval/test-00000-of-00001.parquet",
        [{"task_id": "HumanEval/0", "prompt": "def f():", "test": "t", "entry_point": "f"}],
    ),
    "mbpp": (
        "sanitized/test-00000-of-00001.parquet",
        [{"task_id": 2, "prompt": "Write g.", "code": "c", "test_list": ["assert 1"]}],
    ),
    "livecodebench": (
        "test2.jsonl",
        [{"question_title": "t", "question_content": "Sort.", "starter_code": "", "private_test_cases": "eJx"}],
    ),
    "mt-bench": (
        "raw/question.jsonl",
        [{"prompt_id": 81, "category": "writing", "prompt": ["a", "b"], "reference": []}],
    ),
    "alpaca": (
        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",
        [{"instruction": "say", "input": "", "output": "o", "text": "t"}],
    ),
    "arena-hard-v2": (
        "data/arena-hard-v2.0/question.jsonl",
        [{"uid": "u", "category": "hard_prompt", "subcategory": "coding", "prompt": "Do it."}],
    ),
}
"""Benchmark -> where its rows lie in the hub's repository, and one row of the same columns."""

WORDED = {
    "gsm8k": ("1+1?\nPlease reason step by step, and put your final answer within \\boxed{}.",),
    "math500": ("x?\nPlease reason step by step, and put your final answer within \\boxed{}.",),
    "aime25": ("y?\nPlease reason step by step, and put your final answer within \\boxed{}.",),
    "humaneval": (
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n```",
    ),
    "mbpp": ("Write g.",),
    "livecodebench": ("Write a Python program that solves this problem:\nSort.",),
    "mt-bench": ("a", "b"),
    "alpaca": ("say",),
    "arena-hard-v2": ("Do it.",),
}


def mirror(folder: Path, name: str) -> None:
    """Lay a repository with the benchmark's columns where `datasets` finds it instead of the hub's."""
    source, (file, rows) = HUB_BENCHMARKS[name], SCHEMAS[name]
    path = folder / source.dataset / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"config_name": source.subset or "default", "data_files": [{"split": source.split, "path": file}]}
    (folder / source.dataset / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [config]})}---\n")


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_of_the_nine_is_read_by_its_columns(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SCHEMAS.keys() == HUB_BENCHMARKS.keys()
    mirror(tmp_path, name)
    monkeypatch.chdir(tmp_path)  # a folder of the dataset's name serves instead of the hub
    monkeypatch.setattr("deepspec.formats.questions.HUB_FILES", str(tmp_path / "{dataset}/{files}"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    benchmark = Benchmark(name=name, digest=f"hf:{HUB_BENCHMARKS[name].dataset}@0123")
    (question,) = read_questions(benchmark, "", None, seed=0)
    assert (question.question_id, question.turns) == (f"{name}/0", WORDED[name])


def test_a_repository_of_other_columns_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMAS, "aime25", ("data/train-00000-of-00001.parquet", [{"question": "y?"}]))
    mirror(tmp_path, "aime25")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match=r"benchmark aime25: MathArena/aime_2025@0123 has no column 'problem'"):
        read_questions(Benchmark(name="aime25", digest="hf:MathArena/aime_2025@0123"), "", None, seed=0)


def test_a_seeded_choice_is_stable_and_grows(tmp_path: Path) -> None:
    found = find_benchmarks(folder(tmp_path))
    (benchmark,) = found.benchmarks
    place = found.locations[benchmark.digest]
    five = {each.question_id for each in read_questions(benchmark, place, 5, seed=1)}
    ten = {each.question_id for each in read_questions(benchmark, place, 10, seed=1)}
    assert (len(five), len(ten)) == (5, 10)
    assert five < ten
    assert five != {each.question_id for each in read_questions(benchmark, place, 5, seed=2)}
    assert len(read_questions(benchmark, place, 500, seed=1)) == len(read_questions(benchmark, place, None, 1)) == 20


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    found = find_benchmarks(folder(tmp_path))
    (benchmark,) = found.benchmarks
    folder(tmp_path, rows=21)
    with pytest.raises(SourceError, match="changed since it was resolved"):
        read_questions(benchmark, found.locations[benchmark.digest], None, 0)


@pytest.mark.parametrize("turns", ["[]", '[""]', "[1]", '"a"', "null", '["\\ud800"]'])
def test_rows_without_turns_are_named(tmp_path: Path, turns: str) -> None:
    (tmp_path / "own.jsonl").write_text(f'{{"turns": ["a"]}}\n{{"turns": {turns}}}\n')
    found = find_benchmarks(tmp_path)
    with pytest.raises(SourceError, match=r"own\.jsonl:2: wanted"):
        read_questions(found.benchmarks[0], found.locations[found.benchmarks[0].digest], None, 0)


def test_unknown_names_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no benchmark in this folder"):
        find_benchmarks(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown benchmark 'other'; known: own"):
        find_benchmarks(folder(tmp_path), ["other"])


@pytest.mark.skipif(not DATA.is_dir(), reason="DEEPSPEC_DATA names no folder with benchmarks")
def test_the_given_files_are_read_whole() -> None:
    found = find_benchmarks(DATA)
    sizes = {each.name: len(read_questions(each, found.locations[each.digest], None, 0)) for each in found.benchmarks}
    assert sizes == {"gsm8k": 600, "math500": 250, "humaneval": 164, "mbpp": 128, "mt-bench": 80}
    assert isinstance(found.benchmarks[0], Benchmark)
