"""The rows of a source: a file, a URL, or a dataset on the Hugging Face hub."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import datasets

from deepspec.errors import RowError, SourceError
from deepspec.lines.columns import rows_in, without_nulls
from deepspec.lines.lines import LONGEST_LINE
from deepspec.lines.rows import Row, read_rows
from deepspec.prepare.resolve import HUB

_BATCH = 256


def rows_from(where: str, bad_row: Callable[[RowError], None]) -> Iterator[tuple[int, Row]]:
    """Yield each row of a source with its 1-based number.

    Args:
        where: its path, URL or hub id, from `location`.
        bad_row: called for each row that cannot be read.

    Raises:
        SourceError: it cannot be read.
    """
    return _hub_rows(where, bad_row) if where.startswith(HUB) else read_rows(where, bad_row, LONGEST_LINE)


def location(digest: str, name: str, locations: Mapping[str, str]) -> str:
    """Return where a digest lies on this machine.

    Raises:
        SourceError: nobody told.
    """
    if digest not in locations:
        raise SourceError(f"source {name} ({digest}) lies nowhere on this machine; resolve the plan again", name)
    return locations[digest]


def _hub_rows(where: str, bad_row: Callable[[RowError], None]) -> Iterator[tuple[int, Row]]:
    identity, _, query = where.removeprefix(HUB).partition("?")
    data = _loaded(identity, dict(parse_qsl(query)))

    def read(start: int, stop: int) -> list[Row]:
        columns = data[start:stop]
        return [without_nulls(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    for start in range(0, len(data), _BATCH):
        yield from rows_in(read, (start, min(start + _BATCH, len(data))), identity, bad_row)


def _loaded(identity: str, told: Mapping[str, str]) -> Any:
    """Return a dataset whose images, sounds and videos are left as the bytes that they are."""
    try:
        data: Any = datasets.load_dataset(
            identity, name=told.get("config"), split=told.get("split"), revision=told.get("revision")
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"cannot be loaded: {error}", identity) from error
    for name, feature in data.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
            data = data.cast_column(name, type(feature)(decode=False))
    return data
