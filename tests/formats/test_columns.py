"""Rows of parquet files are the JSON objects that they were, and a value that cannot be read costs its row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.errors import RowError, SourceError
from deepspec.lines.rows import read_rows


def write(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


def test_a_value_that_python_cannot_hold_costs_its_row_only(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "c"]).cast(pa.binary()).to_pylist()
    texts[1] = b"\xff"
    broken = pa.array(texts, pa.binary()).view(pa.string())
    days = pa.array([0, 0, 10**15], pa.timestamp("ms"))
    write(tmp_path / "a.parquet", {"prompt": broken, "day": days})
    seen: list[RowError] = []
    assert [(number, row["prompt"]) for number, row in read_rows(tmp_path / "a.parquet", seen.append)] == [(1, "a")]
    assert [(error.line, error.reason) for error in seen] == [(2, "not_json"), (3, "not_json")]
    assert "UnicodeDecodeError" in str(seen[0])


def test_columns_of_json_text_are_decoded(tmp_path: Path) -> None:
    """`datasets` writes columns of mixed types so: read as text, every content would stand in quotes."""
    contents = ["a", [{"type": "text", "text": "b", "more": None}], None]
    message = pa.StructArray.from_arrays(
        [pa.array(["user"] * 3), pa.array([json.dumps(each) if each else None for each in contents], pa.json_())],
        names=["role", "content"],
    )
    write(tmp_path / "a.parquet", {"messages": pa.ListArray.from_arrays([0, 1, 2, 3], message)})
    rows = [row["messages"][0] for _, row in read_rows(tmp_path / "a.parquet")]
    assert rows == [
        {"role": "user", "content": contents[0]},
        {"role": "user", "content": contents[1]},
        {"role": "user"},
    ]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["river stone"] * 5000})
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[10:30] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match="damaged one"):
        list(read_rows(tmp_path / "a.parquet"))
