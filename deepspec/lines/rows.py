"""Files of rows, one JSON object a row, read and written one at a time: memory does not grow with the file.

Forms, by suffix: `.jsonl`, `.jsonl.zst`, `.jsonl.gz` and `.parquet`. A path may be local or any URL that fsspec knows.
A line ends at `\\n` and nowhere else: real text holds U+2028, U+0085 and other signs at which `str.splitlines` breaks.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from deepspec.errors import RowError, SourceError
from deepspec.lines.columns import batch_rows
from deepspec.lines.lines import HEAD, is_url, open_file, read_lines
from deepspec.lines.mistaken import BOM, check_bytes, cr_only, has_cr_ends

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
"""Endings of the files that can be read."""

DEEPEST = 100
"""Lists and objects within each other: how deep they may be depends on who reads them, and this anybody can."""

_PARQUET_BATCH = 256


def _stop(error: RowError) -> None:
    """Raise the error: what `read_rows` does about a bad row unless told otherwise."""
    raise error


def read_rows(
    path: str | Path, bad_row: Callable[[RowError], None] = _stop, longest: int | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield each row with its 1-based line (or parquet row) number; blank lines are passed over.

    Args:
        path: local path or URL; its ending tells the form.
        bad_row: called with a RowError for each line that is not one JSON object (`not_json`) or is too long
            (`too_long_line`); raises by default.
        longest: bytes of a line that is read: `LONGEST_LINE` for the files of users; None: any.

    Raises:
        SourceError: no such file, an ending that is not in `SUFFIXES`, no row at all, a damaged or cut-off file, or
            one that is no file of rows though its name says so.
    """
    form = form_of(path)
    bad = 0

    def count(error: RowError) -> None:
        nonlocal bad
        bad += 1
        bad_row(error)

    good = False
    for numbered in _read_parquet(path, count) if form == ".parquet" else _read_lines(path, longest, count):
        good = True
        yield numbered
    if not good and not bad:
        raise SourceError("the file holds no row; wanted one JSON object a line", path)


def form_of(path: str | Path) -> str:
    """Return which of `SUFFIXES` a path, or the path of a URL, ends in.

    Raises:
        SourceError: none of them.
    """
    name = (urlsplit(str(path)).path if is_url(path) else str(path)).lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    advice = "; turn a JSON list into lines with: jq -c '.[]' file.json > file.jsonl" if name.endswith(".json") else ""
    raise SourceError(f"unknown form; wanted a name that ends in {', '.join(SUFFIXES)}{advice}", path)


def parse_line(line: bytes, path: str | Path, number: int) -> Row:
    """Return the JSON object on one line of UTF-8.

    Raises:
        RowError: it is not one (`not_json`).
    """
    try:
        row = json.loads(line.removeprefix(BOM).decode())
    except (ValueError, RecursionError) as error:
        raise RowError("not_json", f"not JSON: {error}{_hint(line, path)}", path, number) from error
    if not isinstance(row, dict):
        raise RowError("not_json", f"wanted a JSON object, got {type(row).__name__}", path, number)
    return row


class RowWriter:
    """Writes rows to a `.jsonl` or `.jsonl.zst` file as they come; the same rows give the same bytes.

    Use as a context manager. `rows` counts what was written.
    """

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self.path = path
        self.rows = 0
        self._file: Any = path.open("wb")
        if form_of(path) == ".jsonl.zst":
            self._file = zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(self._file)

    def write(self, row: Row) -> None:
        """Append one row."""
        self._file.write(dump_row(row))
        self.rows += 1

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Finish the file."""
        self.close()


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows to a `.jsonl` or `.jsonl.zst` file and return how many."""
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    return writer.rows


def dump_row(row: Row) -> bytes:
    """Return one row as a line of UTF-8 JSON, keys in the order given."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON in UTF-8 and read again: no NaN, no half of a surrogate pair, and
    no more than `DEEPEST` lists and objects within each other."""
    try:
        return not nests_beyond(value) and bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError):
        return False


def nests_beyond(value: Any, room: int = DEEPEST) -> bool:
    """Return whether a value has more lists and objects within each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(nests_beyond(item, room - 1) for item in inner) if room else bool(inner)


def is_text(value: Any) -> bool:
    """Return whether a value is text that can be written as UTF-8: JSON can name half of a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _read_lines(
    path: str | Path, longest: int | None, bad_row: Callable[[RowError], None]
) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(read_lines(path, form_of(path), longest), start=1):
        try:
            if isinstance(line, int):
                told = f"a line of {line:,} bytes; the longest that is read has {longest:,}"
                raise RowError("too_long_line", told, path, number)
            if line.isspace() or line in (b"", BOM):
                continue
            row = parse_line(line, path, number)
        except RowError as error:
            bad_row(error)
        else:
            yield number, row


def _hint(line: bytes, path: str | Path) -> str:
    """Return what is likely to be wrong with a line that is not JSON."""
    if has_cr_ends(line):
        return f"; {cr_only(path, form_of(path))}"
    return "; it holds NUL bytes: cut off while it was written, or UTF-16" if b"\0" in line else ""


def _read_parquet(path: str | Path, bad_row: Callable[[RowError], None]) -> Iterator[tuple[int, Row]]:
    number = 0
    with open_file(path) as raw:
        check_bytes(raw.read(HEAD), ".parquet", path)
        raw.seek(0)
        try:
            for batch in pq.ParquetFile(raw).iter_batches(batch_size=_PARQUET_BATCH):
                yield from batch_rows(batch, path, number, bad_row)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"not a parquet file, or a damaged one: {error}; fetch the file again", path) from error
