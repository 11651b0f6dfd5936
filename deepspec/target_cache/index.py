"""The index of a target cache: one parquet row a sample, in memory as plain arrays."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepspec.errors import CorruptArtifactError
from deepspec.records.order import Numbers
from deepspec.target_cache.part import COLUMNS, part_name

INDEX = "index.parquet"
"""Name of the index in the artifact."""

_SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


def write_index(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the index; the same rows give the same bytes."""
    table = pa.table({name: pa.array(columns[name], field.type) for name, field in zip(COLUMNS, _SCHEMA, strict=True)})
    pq.write_table(table, path, compression="zstd", use_dictionary=["split"], store_schema=False)


class Index:
    """The samples of a cache, numbered as they lie in it.

    Args:
        path: the parquet file.
    """

    def __init__(self, path: Path) -> None:
        """Read the columns that orders are made of; ids come when one is asked for, and stay as arrow has them.

        Raises:
            CorruptArtifactError: it is not the index of a cache.
        """
        self._path = path
        numeric = [name for name, kind in COLUMNS.items() if kind.startswith("uint")]
        table = self._read([*numeric, "split"])
        splits = table.column("split").combine_chunks()
        self._split_names: list[str] = splits.dictionary.to_pylist()
        self._split_codes = splits.indices.to_numpy()
        self._columns = {name: table.column(name).to_numpy() for name in numeric}
        self._first: dict[str, tuple[int, int]] = {}
        self.parts: Numbers = (self._columns["shard"].astype(np.int64) << 32) | self._columns["part"]
        """`(N,)`: for each sample, a number that names its part."""

    def _read(self, columns: Sequence[str]) -> Any:
        try:
            found = pq.read_schema(self._path)
            if not found.equals(_SCHEMA):
                raise pa.ArrowInvalid(f"its columns are {found.names}")
            return pq.read_table(self._path, columns=columns, read_dictionary=["split"]).unify_dictionaries()
        except (pa.ArrowInvalid, OSError) as error:
            message = f"{self._path}: cannot be read as the index of a target cache: {error}"
            raise CorruptArtifactError(message) from error

    @cached_property
    def _ids(self) -> Any:
        return self._read(["sample_id"]).column("sample_id").combine_chunks()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.parts)

    @property
    def lengths(self) -> Numbers:
        """Return `(N,)`: tokens of each sample."""
        lengths: Numbers = self._columns["length"].astype(np.int64)
        return lengths

    @property
    def supervised(self) -> Numbers:
        """Return `(N,)`: tokens of each sample that the target generated."""
        supervised: Numbers = self._columns["supervised"].astype(np.int64)
        return supervised

    def numbers(self, split: str) -> Numbers:
        """Return the numbers of the samples of one split, ascending."""
        if split not in self._split_names:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self._split_codes == self._split_names.index(split))

    def sample_id(self, number: int) -> str:
        """Return the id of one sample."""
        return str(self._ids[number].as_py())

    def row(self, number: int) -> dict[str, Any]:
        """Return one row."""
        values = {name: int(column[number]) for name, column in self._columns.items()}
        return {"sample_id": self.sample_id(number), **values}

    def numbers_of(self, part: str) -> list[int]:
        """Return the numbers of the samples of a part, in the order in which they lie there."""
        if not self._first:
            _, first, counts = np.unique(self.parts, return_index=True, return_counts=True)
            self._first = {
                self.part_of(place): (place, n) for place, n in zip(first.tolist(), counts.tolist(), strict=True)
            }
        start, count = self._first[part]
        return list(range(start, start + count))

    def part_of(self, number: int) -> str:
        """Return the name of the part that holds a sample."""
        return part_name(int(self._columns["shard"][number]), int(self._columns["part"][number]))
