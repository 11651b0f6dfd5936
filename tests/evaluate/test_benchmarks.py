"""Benchmarks: which rows are asked, and how they are worded."""

import json
import os
from pathlib import Path

import pytest

from deepspec.errors import SourceError, UnknownNameError
from deepspec.formats.benchmarks import HUB_BENCHMARKS, Benchmark, resolve
from deepspec.formats.questions import read_questions

DATA = Path(os.environ.get("DEEPSPEC_DATA", "/nonexistent")) / "benchmarks"


def folder(path: Path, rows: int = 20) -> Path:
    lines = "".join(
        json.dumps({"turns": [f"question {row}\u2028more"]}, ensure_ascii=False) + "\n" for row in range(rows)
    )
    (path / "own.jsonl").write_text(lines, encoding="utf-8")
    return path


def test_the_table_has_the_published_sizes():
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


def test_hub_rows_are_worded_as_the_given_files_are():
    maths = HUB_BENCHMARKS["gsm8k"].turns({"question": "1+1?"})
    assert maths == ["1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."]
    (code,) = HUB_BENCHMARKS["humaneval"].turns({"prompt": "def f():\n"})
    assert code == (
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n\n```"
    )
    assert HUB_BENCHMARKS["mt-bench"].turns({"prompt": ["a", "b"]}) == ["a", "b"]
    assert HUB_BENCHMARKS["alpaca"].turns({"instruction": "say", "input": "x"}) == ["say\nx"]


def test_a_seeded_choice_is_stable_and_grows(tmp_path: Path):
    found = resolve(folder(tmp_path))
    (benchmark,) = found.benchmarks
    place = found.locations[benchmark.digest]
    five = {each.question_id for each in read_questions(benchmark, place, 5, seed=1)}
    ten = {each.question_id for each in read_questions(benchmark, place, 10, seed=1)}
    assert (len(five), len(ten)) == (5, 10)
    assert five < ten
    assert five != {each.question_id for each in read_questions(benchmark, place, 5, seed=2)}
    assert len(read_questions(benchmark, place, 500, seed=1)) == len(read_questions(benchmark, place, None, 1)) == 20


def test_a_file_that_changed_is_refused(tmp_path: Path):
    found = resolve(folder(tmp_path))
    (benchmark,) = found.benchmarks
    folder(tmp_path, rows=21)
    with pytest.raises(SourceError, match="changed since it was resolved"):
        read_questions(benchmark, found.locations[benchmark.digest], None, 0)


def test_rows_without_turns_are_named(tmp_path: Path):
    (tmp_path / "own.jsonl").write_text('{"turns": ["a"]}\n{"turns": []}\n')
    found = resolve(tmp_path)
    with pytest.raises(SourceError, match=r"own\.jsonl:2: wanted"):
        read_questions(found.benchmarks[0], found.locations[found.benchmarks[0].digest], None, 0)


def test_unknown_names_and_empty_folders_are_refused(tmp_path: Path):
    with pytest.raises(SourceError, match="no benchmark in this folder"):
        resolve(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown benchmark 'other'; known: own"):
        resolve(folder(tmp_path), ["other"])


@pytest.mark.skipif(not DATA.is_dir(), reason="DEEPSPEC_DATA names no folder with benchmarks")
def test_the_given_files_are_read_whole():
    found = resolve(DATA)
    sizes = {each.name: len(read_questions(each, found.locations[each.digest], None, 0)) for each in found.benchmarks}
    assert sizes == {"gsm8k": 600, "math500": 250, "humaneval": 164, "mbpp": 128, "mt-bench": 80}
    assert isinstance(found.benchmarks[0], Benchmark)
