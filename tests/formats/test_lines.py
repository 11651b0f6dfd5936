"""The lines of a file, however it is cut: equal to those of a plain split, and never more than one of them held."""

import gzip
import random
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from deepspec.errors import RowError, SourceError
from deepspec.lines import lines as room
from deepspec.lines.lines import is_url, open_file, split_lines
from deepspec.lines.rows import read_rows


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return bytes in chunks that end at the places."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def plainly(data: bytes) -> list[bytes]:
    """Return the lines by the simplest rule there is."""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


BYTES = st.binary(max_size=200) | st.lists(st.sampled_from([b"\n", b"\r", b"\0", b"a", b"\xff"])).map(b"".join)


@given(BYTES, st.lists(st.integers(0, 10_000), max_size=6))
def test_however_a_file_is_cut_its_lines_are_those_of_a_plain_split(data: bytes, places: list[int]) -> None:
    assert list(split_lines(cut(data, places))) == plainly(data)


@given(BYTES, st.lists(st.integers(0, 10_000), max_size=6), st.integers(0, 5))
def test_of_lines_that_are_too_long_only_the_length_is_left(data: bytes, places: list[int], longest: int) -> None:
    wanted = [line if len(line) <= longest else len(line) for line in plainly(data)]
    assert list(split_lines(cut(data, places), longest)) == wanted


def test_a_line_that_is_too_long_costs_one_row_and_says_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a":1}\n{"a":"' + b"x" * 60 + b'"}\n{"a":2}\n')
    seen: list[RowError] = []
    assert list(read_rows(tmp_path / "a.jsonl", seen.append, 40)) == [(1, {"a": 1}), (3, {"a": 2})]
    assert (seen[0].reason, seen[0].line) == ("too_long_line", 2)
    assert "a line of 68 bytes; the longest that is read has 40" in str(seen[0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_that_is_too_long_is_never_held(tmp_path: Path, name: str) -> None:
    """96 MB without an end of line, of which 1 MB may be held."""
    data = b'{"a":"' + b"river stone " * 8_000_000 + b'"}\n{"a":2}\n'
    packs: dict[str, Callable[[bytes], bytes]] = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstandard.compress}
    (tmp_path / name).write_bytes(packs.get(name, bytes)(data))
    seen: list[RowError] = []
    tracemalloc.start()
    rows = list(read_rows(tmp_path / name, seen.append, 1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == [(2, {"a": 2})]
    assert [error.reason for error in seen] == ["too_long_line"]
    assert peak < 40 << 20


def test_bytes_are_handled_once_however_long_the_line() -> None:
    """Joining what came before with each chunk would handle 32 chunks of a line 16 times on average."""

    class Chunk(bytes):
        handled = 0

        def __radd__(self, other: bytes) -> bytes:
            Chunk.handled += len(other)
            return other + bytes(self)

    assert list(split_lines([Chunk(b"x" * 1000)] * 32)) == [b"x" * 32_000]
    assert Chunk.handled == 0


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_files_are_decompressed_in_small_steps(tmp_path: Path, pack: Callable[..., Any]) -> None:
    """100 MB that were compressed a thousandfold, of zstd ten thousandfold, are never there together."""
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst")
    path.write_bytes(pack((b'{"a":"' + b"x" * 10_000 + b'"}\n') * 10_000))
    tracemalloc.start()
    count = sum(1 for _ in room.read_lines(path, path.name.removeprefix("a")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 40 << 20


def test_frames_that_end_within_a_step_are_all_read(tmp_path: Path) -> None:
    rows = [f'{{"a":{random.Random(number).random()}}}\n'.encode() for number in range(500)]
    for name, pack in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(b"".join(map(pack, rows)))
        lines = [line for line in room.read_lines(tmp_path / name, name[1:]) if isinstance(line, bytes)]
        assert b"\n".join(lines) + b"\n" == b"".join(rows)


@pytest.mark.parametrize("name", ["a::b.jsonl", "100%.jsonl", "[x].jsonl", "a?limit=1.jsonl", "übung & $HOME #2.jsonl"])
def test_a_local_name_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b'{"a":1}\n')
    assert list(read_rows(name)) == list(read_rows(tmp_path / name)) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("s3://bucket/a.jsonl", True), ("https://host/a.jsonl?token=x", True), ("file:///a.jsonl", True),
        ("simplecache::s3://bucket/a.jsonl", True), ("zip://a.jsonl::/b.zip", True), ("a::b.jsonl", False),
        ("/data/s3://a.jsonl", False), ("s3:/bucket/a.jsonl", False), ("a b://c.jsonl", False), ("a.jsonl", False),
    ],
)  # fmt: skip
def test_a_url_begins_with_its_scheme(name: str, url: bool) -> None:
    assert is_url(name) is url


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file; check the path"):
        open_file(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match="cannot be opened"):
        open_file(tmp_path)
    with pytest.raises(SourceError, match="cannot be opened"):
        open_file("nosuchscheme://a.jsonl")
