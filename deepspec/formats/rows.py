"""Files of rows, one JSON object a row, read and written one at a time: memory does not grow with the file.

Forms, by suffix: `.jsonl`, `.jsonl.zst`, `.jsonl.gz` and `.parquet`. A path may be local or any URL that fsspec knows.
A line ends at `\\n` and nowhere else: real text holds U+2028, U+0085 and other signs at which `str.splitlines` breaks.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from deepspec.errors import RowError, SourceError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
"""Endings of the files that can be read."""

_CHUNK = 1 << 16
_PARQUET_BATCH = 256


def stop(error: RowError) -> None:
    """Raise the error: what `read_rows` does about a bad row unless told otherwise."""
    raise error


def read_rows(path: str | Path, bad_row: Callable[[RowError], None] = stop) -> Iterator[tuple[int, Row]]:
    """Yield each row with its 1-based line (or parquet row) number; blank lines are passed over.

    Args:
        path: local path or URL; its ending tells the form.
        bad_row: called with a RowError (`not_json`) for each line that is not one JSON object; raises by default.

    Raises:
        SourceError: no such file, an ending that is not in `SUFFIXES`, no row at all, or a damaged or cut-off file.
    """
    read = _read_parquet(path) if form_of(path) == ".parquet" else _read_lines(path, bad_row)
    empty = True
    for numbered in read:
        empty = False
        yield numbered
    if empty:
        raise SourceError("the file holds no row; wanted one JSON object a line", path)


def form_of(path: str | Path) -> str:
    """Return which of `SUFFIXES` a path ends in.

    Raises:
        SourceError: none of them.
    """
    name = str(path).lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    advice = "; turn a JSON list into lines with: jq -c '.[]' file.json > file.jsonl" if name.endswith(".json") else ""
    raise SourceError(f"unknown form; wanted a name that ends in {', '.join(SUFFIXES)}{advice}", path)


def parse_line(line: bytes, path: str | Path, number: int) -> Row:
    """Return the JSON object on one line.

    Raises:
        RowError: it is not one (`not_json`).
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError("not_json", f"not JSON: {error}", path, number) from error
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


def _read_lines(path: str | Path, bad_row: Callable[[RowError], None]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        try:
            row = parse_line(content, path, number)
        except RowError as error:
            bad_row(error)
        else:
            yield number, row


def _lines(path: str | Path) -> Iterator[bytes]:
    rest = b""
    for chunk in _decompressed(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _decompressed(path: str | Path) -> Iterator[bytes]:
    """Yield the plain bytes of a file in chunks; a compressed file that ends too early is an error."""
    new = _DECOMPRESSORS[form_of(path)]
    with _opened(path) as raw:
        if new is None:
            yield from iter(lambda: raw.read(_CHUNK), b"")
            return
        try:
            yield from _frames(raw, new)
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise SourceError(f"damaged or cut off ({error}); fetch the file again", path) from error


def _frames(raw: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    frame: Any = None
    while chunk := raw.read(_CHUNK):
        while chunk:
            frame = frame or new()
            yield frame.decompress(chunk)
            chunk = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the last frame does not end")


_DECOMPRESSORS: dict[str, Callable[[], Any] | None] = {
    ".jsonl": None,
    ".jsonl.zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    ".jsonl.gz": lambda: zlib.decompressobj(wbits=31),
}


def _read_parquet(path: str | Path) -> Iterator[tuple[int, Row]]:
    number = 0
    with _opened(path) as raw:
        try:
            for batch in pq.ParquetFile(raw).iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nulls(row)
        except pa.ArrowInvalid as error:
            raise SourceError(f"not a parquet file: {error}", path) from error


def without_nulls(value: Any) -> Any:
    """Return a columnar row without the nulls that fill the fields which it never had."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _opened(path: str | Path) -> Any:
    """Return the open binary file behind a path or URL."""
    try:
        return fsspec.open(str(path), "rb").open()
    except FileNotFoundError as error:
        raise SourceError("no such file; check the path", path) from error
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"cannot be opened: {error}", path) from error
