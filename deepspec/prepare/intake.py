"""The first pass: every row of every source parsed, cleaned, and put aside with what choosing needs."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepspec.errors import RowError
from deepspec.formats.conversations import Conversation, parse_conversation, prompt_of, sample_id, user_texts
from deepspec.formats.rows import Row, RowWriter
from deepspec.prepare.choose import rank_of
from deepspec.prepare.contamination import BenchmarkPrompts, read_prompts
from deepspec.prepare.near import SignatureFile, near_duplicates
from deepspec.prepare.sources import location, source_rows
from deepspec.prepare.spec import PrepareSpec, Source
from deepspec.prepare.text import Hashes
from deepspec.report import Report

EXAMPLES = 5
"""Bad rows of each reason that are shown."""

_TOLD_EVERY = 1000


@dataclass(slots=True)
class Tally:
    """How many rows were read, and why how many of them were dropped."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first bad rows, by source and line: no paths, which differ between machines."""


class Intake:
    """Takes rows in. Use as a context manager; what it keeps lies in `folder`.

    Args:
        spec: what is read and how it is cleaned.
        locations: digest -> where it lies on this machine.
        folder: scratch folder.
    """

    def __init__(self, spec: PrepareSpec, locations: Mapping[str, str], folder: Path) -> None:
        """Index the benchmarks and open the scratch files."""
        self.path = folder / "clean.jsonl.zst"
        self.tally = Tally()
        self._spec = spec
        self._locations = locations
        self._benchmarks = _benchmark_prompts(spec, locations)
        self._seen: set[int] = set()
        self._ranks, self._origins = array("Q"), array("H")
        self._rows = RowWriter(self.path)
        self._signatures = None if spec.near_duplicates is None else SignatureFile(folder / "signatures.bin")

    def __enter__(self) -> Self:
        """Return the intake."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Finish the scratch files."""
        self._rows.close()
        if self._signatures is not None:
            self._signatures.close()

    @property
    def ranks(self) -> Hashes:
        """Return the rank of each clean row."""
        return np.array(self._ranks, dtype=np.uint64)

    @property
    def origins(self) -> npt.NDArray[np.uint16]:
        """Return the index of each clean row's source."""
        return np.array(self._origins, dtype=np.uint16)

    def read(self, report: Report) -> None:
        """Read all sources.

        Raises:
            SourceError: a source cannot be read.
            RowError: a row cannot be used and the spec says to stop there.
        """
        for index, source in enumerate(self._spec.sources):
            self._read_source(index, source, report)

    def near_duplicates(self) -> npt.NDArray[np.bool_]:
        """Return which clean rows are near-duplicates of another; only after the scratch files are finished."""
        if self._signatures is None or self._spec.near_duplicates is None:
            return np.zeros(len(self._ranks), dtype=np.bool_)
        return near_duplicates(self._signatures.read(), self.ranks, self._spec.near_duplicates)

    def _read_source(self, index: int, source: Source, report: Report) -> None:
        where = location(source.digest, source.name, self._locations)

        def bad_row(error: RowError) -> None:
            if self._spec.bad_rows == "stop":
                raise error
            self.tally.read += 1
            self.tally.dropped[error.reason] += 1
            shown = self.tally.examples.setdefault(error.reason, [])
            if len(shown) < EXAMPLES:
                shown.append(f"{source.name}:{error.line}")

        for number, row in source_rows(where, bad_row):
            try:
                conversation = prompt_of(parse_conversation(row, where, number))
            except RowError as error:
                bad_row(error)
                continue
            self._take(index, conversation, _origin(row, source))
            if self.tally.read % _TOLD_EVERY == 0:
                report.progress(index, len(self._spec.sources), "sources", f"{self.tally.read} rows read")

    def _take(self, index: int, conversation: Conversation, origin: str) -> None:
        self.tally.read += 1
        identity, texts = sample_id(conversation), user_texts(conversation)
        key = int(identity[:16], 16)
        if key in self._seen:
            self.tally.dropped["duplicate"] += 1
            return
        self._seen.add(key)
        if self._benchmarks is not None and self._benchmarks.are_in(texts):
            self.tally.dropped["benchmark"] += 1
            return
        self._rows.write({"id": identity, "source": origin, **conversation})
        self._ranks.append(rank_of(identity, self._spec.seed))
        self._origins.append(index)
        if self._signatures is not None:
            self._signatures.add("\n".join(texts))


def _origin(row: Row, source: Source) -> str:
    own: Any = row.get("source")
    return own if isinstance(own, str) and own else source.name


def _benchmark_prompts(spec: PrepareSpec, locations: Mapping[str, str]) -> BenchmarkPrompts | None:
    if not spec.benchmarks or spec.benchmark_overlap is None:
        return None
    paths = [location(digest, "benchmark", locations) for digest in spec.benchmarks]
    return BenchmarkPrompts(read_prompts(paths), spec.benchmark_ngram, spec.benchmark_overlap)
