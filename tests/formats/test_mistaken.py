"""Files that hold no rows though their names say so are named with what mends them, and the mending works."""

import gzip
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from deepspec.errors import RowError, SourceError
from deepspec.lines.rows import read_rows

TEXT = '{"a": "ä"}\n{"a": 2}\n'
ROWS = [{"a": "ä"}, {"a": 2}]
LIST = '[\n {"a": "ä"},\n {"a": 2}\n]\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as found:
        list(read_rows(path))
    assert not isinstance(found.value, RowError), "it is the file's, not a row's"
    return str(found.value)


MENDED = {
    "utf-16": TEXT.encode("utf-16"),
    "utf-16 without a mark": TEXT.encode("utf-16-le"),
    "utf-16 of the other order": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-16 of the other order, no mark": TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "utf-32 without a mark": TEXT.encode("utf-32-be"),
    "utf-32 of the other order, no mark": TEXT.encode("utf-32-le"),
    "a list": LIST.encode(),
    "a list after blanks and a mark": b"\xef\xbb\xbf\n  " + LIST.encode(),
    "a list in one line": b'[{"a": "\xc3\xa4"}, {"a": 2}]',
    "a list of compact rows": '[{"a": "ä"},\n{"a": 2}]\n'.encode(),
    "old Macintosh line ends": TEXT.replace("\n", "\r").encode(),
    "objects over several lines": '{\n "a": "ä"\n}\n{\n "a": 2\n}\n'.encode(),
}


@pytest.mark.parametrize("data", MENDED.values(), ids=list(MENDED))
@pytest.mark.parametrize("name", ["my rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"])
def test_the_advice_mends_the_file(tmp_path: Path, name: str, data: bytes) -> None:
    packs: dict[str, Callable[[bytes], bytes]] = {"rows.jsonl.gz": gzip.compress, "rows.jsonl.zst": zstandard.compress}
    (tmp_path / name).write_bytes(packs.get(name, bytes)(data))
    command = refused(tmp_path / name).partition("mend it with: ")[2]
    assert command
    tools = re.findall(r"\b(jq|zstd|iconv|tr|gzip)\b", command)
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [row for _, row in read_rows(tmp_path / "mended.jsonl")] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    assert "git-lfs pointer, not the file itself; run git lfs pull" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", gzip.compress(b"x", mtime=0), "its bytes are jsonl.gz; give it a name that ends in .jsonl.gz"),
        ("a.jsonl", zstandard.compress(b"x"), "give it a name that ends in .jsonl.zst"),
        ("a.jsonl.gz", b"PAR1", "give it a name that ends in .parquet"),
        ("a.parquet", gzip.compress(b"x", mtime=0), "give it a name that ends in .jsonl.gz"),
        ("a.jsonl", b"PK\x03\x04", "its bytes are zip; unpack it"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "a web page, not a file of rows"),
        ("a.parquet", b"\n<html>", "a web page, not a file of rows"),
    ],
)
def test_bytes_that_are_not_what_the_name_says_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert message in refused(tmp_path / name)


@pytest.mark.parametrize(
    "first",
    [
        b"[INFO] starting", b"[2024-01-01] begin", b'[{"role": "user", "content": "a"}]', b"[]", b"[1, 2]", b"\0" * 9,
        b"<b>bold</b>", b"a\rb", b'{"b": 1}\r{"b": 2}', b"\xff", b"}", b"version 1", b"BZ", b"null",
    ],
)  # fmt: skip
def test_a_file_whose_first_line_is_bad_loses_that_line_only(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(first + b'\n{"a": 1}\n{"a": 2}\n')
    seen: list[RowError] = []
    assert [row for _, row in read_rows(tmp_path / "a.jsonl", seen.append)] == [{"a": 1}, {"a": 2}]
    assert [(error.line, error.reason) for error in seen] == [(1, "not_json")]


def test_rows_that_end_in_cr_within_another_file_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\r{"a": 3}\n')
    with pytest.raises(RowError, match=r"a\.jsonl:2: not JSON: Extra data.*its lines end in .r alone"):
        list(read_rows(tmp_path / "a.jsonl"))


def test_a_tail_of_nul_bytes_is_one_bad_row_and_explained(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + b"\0" * 5000)
    seen: list[RowError] = []
    assert [row for _, row in read_rows(tmp_path / "a.jsonl", seen.append)] == [{"a": 1}]
    assert "it holds NUL bytes: cut off while it was written" in str(seen[0])


def test_marks_of_joined_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\xef\xbb\xbf{"a": 2}\n\xef\xbb\xbf\n')
    assert [row for _, row in read_rows(tmp_path / "a.jsonl")] == [{"a": 1}, {"a": 2}]
