"""Rows in files: what is read is what was written, line by line, and a damaged file is named."""

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.errors import RowError, SourceError
from deepspec.lines.rows import dump_row, parse_line, read_rows, write_rows

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
ROWS = st.lists(st.dictionaries(TEXTS, TEXTS | st.integers() | st.none() | st.lists(TEXTS)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(ROWS)
def test_rows_survive_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for name in ("a.jsonl", "a.jsonl.zst"):
        assert write_rows(folder / name, rows) == len(rows)
        assert [row for _, row in read_rows(folder / name)] == rows


@given(st.binary())
def test_any_line_is_an_object_or_a_named_error(line: bytes) -> None:
    with suppress(RowError):
        assert isinstance(parse_line(line, "x.jsonl", 7), dict)


def test_lines_end_at_the_newline_sign_only(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"a\u2028b\x85c"}\r\n\n{"text":"d"}', encoding="utf-8", newline="")
    assert list(read_rows(tmp_path / "a.jsonl")) == [(1, {"text": "a\u2028b\x85c"}), (3, {"text": "d"})]


def test_a_line_of_many_chunks_is_one_row(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    (tmp_path / "a.jsonl").write_bytes(dump_row({"t": long}) + dump_row({"t": "y"}))
    assert [len(row["t"]) for _, row in read_rows(tmp_path / "a.jsonl")] == [1_000_000, 1]


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a":1}\n')
    assert list(read_rows(tmp_path / "a.jsonl")) == [(1, {"a": 1})]


def test_gzip_and_joined_zstd_frames_are_read_to_the_end(tmp_path: Path) -> None:
    lines = [b'{"a":1}\n', b'{"a":2}\n']
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(line) for line in lines))
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(line) for line in lines))
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        assert list(read_rows(tmp_path / name)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_parquet_rows_lose_the_nulls_that_fill_columns(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "name": "x"}]}, {"messages": [{"role": "tool"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row for _, row in read_rows(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz"])
def test_a_cut_off_file_is_never_read_as_whole(tmp_path: Path, name: str) -> None:
    data = dump_row({"text": "abc" * 100})
    packed = zstandard.compress(data) if name.endswith("zst") else gzip.compress(data)
    (tmp_path / name).write_bytes(packed[:-5])
    with pytest.raises(SourceError, match=r"damaged or cut off"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jsonl", b"", "holds no row"),
        ("blank.jsonl", b"\n \n", "holds no row"),
        ("list.json", b"[]", r"jq -c"),
        ("table.csv", b"a,b", "unknown form"),
        ("bad.parquet", b"PAR0", "not a parquet file"),
        ("bad.jsonl", b'{"a":1}\n{"a":\n', r"bad\.jsonl:2: not JSON"),
        ("deep.jsonl", b"[" * 100_000, "not JSON"),
        ("latin.jsonl", b'{"a":"\xe9"}', r"latin\.jsonl:1: not JSON"),
        ("list.jsonl", b"[1]", "wanted a JSON object, got list"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        list(read_rows(tmp_path / name))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SourceError, match=r"nowhere/a\.jsonl: no such file"):
        list(read_rows(Path("nowhere/a.jsonl")))


def test_bad_lines_can_be_passed_over_and_seen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a":1}\nnope\n{"a":2}\n')
    seen: list[RowError] = []
    assert [row["a"] for _, row in read_rows(tmp_path / "a.jsonl", seen.append)] == [1, 2]
    assert [(error.reason, error.line) for error in seen] == [("not_json", 2)]


def test_a_file_of_bad_lines_only_is_no_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"nope\n[1]\n")
    seen: list[RowError] = []
    assert list(read_rows(tmp_path / "a.jsonl", seen.append)) == []
    assert [error.line for error in seen] == [1, 2]
