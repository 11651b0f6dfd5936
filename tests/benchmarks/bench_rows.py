"""Rows that are read: one of many megabytes, whose time must grow with its length and no faster, and ordinary ones.

python -m pytest -m bench tests/benchmarks/bench_rows.py -s
"""

import json
import time
from pathlib import Path

import pytest

from deepspec.lines.rows import read_rows

pytestmark = pytest.mark.bench

ROWS = 200_000


def seconds(path: Path) -> tuple[int, float]:
    start = time.process_time()
    count = sum(1 for _ in read_rows(path))
    return count, time.process_time() - start


def test_long_lines(tmp_path: Path) -> None:
    for megabytes in (9, 18, 36, 100):
        text = "river stone " * (megabytes * 1_000_000 // 12)
        (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
        print(f"\none line of {megabytes} MB: {seconds(tmp_path / 'long.jsonl')[1]:.2f} s", end="")


def test_ordinary_rows(tmp_path: Path) -> None:
    with (tmp_path / "many.jsonl").open("w") as file:
        for number in range(ROWS):
            message = {"role": "user", "content": (f"question {number} " * 70)[:900]}
            file.write(json.dumps({"messages": [message]}) + "\n")
    for _ in range(3):
        print("\n{} rows of 1 kB: {:.2f} s".format(*seconds(tmp_path / "many.jsonl")), end="")
