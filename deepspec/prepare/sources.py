"""The rows of a source: a file, a URL, or a dataset on the Hugging Face hub."""

from collections.abc import Callable, Iterator, Mapping
from urllib.parse import parse_qsl

import datasets

from deepspec.errors import RowError, SourceError
from deepspec.formats.rows import Row, read_rows, without_nulls
from deepspec.prepare.resolve import HUB


def source_rows(where: str, bad_row: Callable[[RowError], None]) -> Iterator[tuple[int, Row]]:
    """Yield each row of a source with its 1-based number.

    Args:
        where: its path, URL or hub id, from `location`.
        bad_row: called for each line that is no JSON object.

    Raises:
        SourceError: it cannot be read.
    """
    return _hub_rows(where) if where.startswith(HUB) else read_rows(where, bad_row)


def location(digest: str, name: str, locations: Mapping[str, str]) -> str:
    """Return where a digest lies on this machine.

    Raises:
        SourceError: nobody told.
    """
    if digest not in locations:
        raise SourceError(f"source {name} ({digest}) lies nowhere on this machine; resolve the plan again", name)
    return locations[digest]


def _hub_rows(where: str) -> Iterator[tuple[int, Row]]:
    identity, _, query = where.removeprefix(HUB).partition("?")
    told = dict(parse_qsl(query))
    try:
        data = datasets.load_dataset(
            identity, name=told.get("config"), split=told.get("split"), revision=told.get("revision")
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"cannot be loaded: {error}", identity) from error
    for number, row in enumerate(data, start=1):
        yield number, without_nulls(row)
