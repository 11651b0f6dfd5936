"""Rows out of columnar batches (parquet files, datasets of the hub), as the JSON objects that they were."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row

JSON_TYPE = "arrow.json"
"""Name of the extension type whose values are JSON text: what `datasets` makes of a column of mixed types."""


BadRow = Callable[[RowError], None]
Span = tuple[int, int]
"""The first of some rows, counted from 0, and the one behind the last."""


def batch_rows(batch: pa.RecordBatch, path: str | Path, before: int, bad_row: BadRow) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a batch, numbered from `before + 1`, without the nulls that fill its columns.

    Args:
        batch: some rows.
        path: where they lie, for messages.
        before: rows before them in the file.
        bad_row: called with a RowError (`not_json`) for each that cannot be read.
    """

    def read(start: int, stop: int) -> list[dict[str, Any]]:
        return _rows(batch.slice(start - before, stop - start))

    yield from rows_in(read, (before, before + batch.num_rows), path, bad_row)


def rows_in(
    read: Callable[[int, int], list[dict[str, Any]]], span: Span, path: str | Path, bad_row: BadRow
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows with their 1-based numbers, read together, or one by one where that fails.

    A value that Python cannot hold (text that is no UTF-8, a date in the year 300000) costs its row, not the others.
    """
    start, stop = span
    try:
        with one_row("not_json", path):
            rows = read(start, stop)
    except RowError:
        for place in range(start, stop):
            yield from _one(read, place, path, bad_row)
    else:
        yield from enumerate(rows, start=start + 1)


def without_nulls(value: Any) -> Any:
    """Return a columnar row without the nulls that fill the fields which it never had."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _one(
    read: Callable[[int, int], list[dict[str, Any]]], place: int, path: str | Path, bad_row: BadRow
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with one_row("not_json", path, place + 1):
            (row,) = read(place, place + 1)
    except RowError as error:
        bad_row(error)
    else:
        yield place + 1, row


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = batch.to_pylist()
    if not any(_holds_json(field.type) for field in batch.schema):
        return [without_nulls(row) for row in rows]
    return [_plain(row, pa.struct(batch.schema)) for row in rows]


def _holds_json(kind: pa.DataType) -> bool:
    inner = (kind.field(number) for number in range(kind.num_fields))
    return _is_json(kind) or any(_holds_json(field.type) for field in inner)


def _is_json(kind: pa.DataType) -> bool:
    return getattr(kind, "extension_name", "") == JSON_TYPE


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return a value with its JSON text decoded, and without nulls outside of that."""
    if isinstance(value, str) and _is_json(kind):
        return json.loads(value)
    if isinstance(value, dict):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        return {field.name: _plain(value[field.name], field.type) for field in fields if value[field.name] is not None}
    if isinstance(value, list) and not pa.types.is_map(kind):
        return [_plain(item, kind.value_type) for item in value]
    return value
