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
from deepspec.lines.bad_rows import EXAMPLES, BadRows, one_row
from deepspec.lines.rows import Row, RowWriter, is_text
from deepspec.messages.conversations import parse_conversation, prompt_of, sample_id, user_texts
from deepspec.prepare.choose import KEPT, rank_of
from deepspec.prepare.contamination import BenchmarkPrompts, read_prompts
from deepspec.prepare.near import SignatureFile, Signatures, near_duplicates, signature
from deepspec.prepare.sources import location, rows_from
from deepspec.prepare.spec import PrepareSpec, Source
from deepspec.prepare.text import Hashes
from deepspec.report import Report

_TOLD_EVERY = 1000
_LONGEST_ID = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """What one row gives."""

    identity: str
    dropped: str = KEPT
    """Why it goes, or `KEPT`."""
    prompt: Row = field(default_factory=dict)
    signature: Signatures | None = None


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
        self.bad = BadRows(spec.bad_share, "prepare.bad_share")
        """Rows read, and those of them that cannot be used."""
        self.dropped: Counter[str] = Counter()
        """Reason -> rows that can be used, and are not."""
        self.examples: dict[str, list[str]] = {}
        """Reason -> the first bad rows, by source and line: no paths, which differ between machines."""
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
            BadRowsError: more rows cannot be used than the spec allows.
        """
        for index, source in enumerate(self._spec.sources):
            self._read_source(index, source, report)
        self.bad.check()

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
            self.bad.add()
            self.bad.drop(error)
            shown = self.examples.setdefault(error.reason, [])
            if len(shown) < EXAMPLES:
                shown.append(f"{source.name}:{error.line}: {str(error).removeprefix(f'{error.path}:{error.line}: ')}")

        for number, row in rows_from(where, bad_row):
            try:
                with one_row("unreadable", where, number, _own_id(row)):
                    found = self._read_row(row, source)
            except RowError as error:
                bad_row(error)
                continue
            self._take(index, found)
            if self.bad.read % _TOLD_EVERY == 0:
                report.progress(index, len(self._spec.sources), "sources", f"{self.bad.read:,} rows read")

    def _read_row(self, row: Row, source: Source) -> _Read:
        """Return what a row gives; nothing is noted before all of it is known."""
        conversation = prompt_of(parse_conversation(row))
        identity, texts = sample_id(conversation), user_texts(conversation)
        if _key(identity) in self._seen:
            return _Read(identity=identity, dropped="duplicate")
        if self._benchmarks is not None and self._benchmarks.are_in(texts):
            return _Read(identity=identity, dropped="benchmark")
        prompt = {"id": identity, "source": _origin(row, source), **conversation}
        signed = None if self._signatures is None else signature("\n".join(texts))
        return _Read(identity=identity, prompt=prompt, signature=signed)

    def _take(self, index: int, found: _Read) -> None:
        self.bad.add()
        self._seen.add(_key(found.identity))
        if found.dropped != KEPT:
            self.dropped[found.dropped] += 1
            return
        self._rows.write(found.prompt)
        self._ranks.append(rank_of(found.identity, self._spec.seed))
        self._origins.append(index)
        if self._signatures is not None and found.signature is not None:
            self._signatures.add(found.signature)


def _key(identity: str) -> int:
    return int(identity[:16], 16)


def _own_id(row: Row) -> str:
    """Return the name that a row has in its file, for messages: it may hold what no terminal and no file takes."""
    own = row.get("id")
    name = str(own)[:_LONGEST_ID] if isinstance(own, str | int) else ""
    return name if name.isprintable() else repr(name)


def _origin(row: Row, source: Source) -> str:
    own: Any = row.get("source")
    if not isinstance(own, str) or not own:
        return source.name
    if not is_text(own):
        raise RowError("not_text", "its 'source' is no Unicode")
    return own


def _benchmark_prompts(spec: PrepareSpec, locations: Mapping[str, str]) -> BenchmarkPrompts | None:
    if not spec.benchmarks or spec.benchmark_overlap is None:
        return None
    paths = [location(digest, "benchmark", locations) for digest in spec.benchmarks]
    return BenchmarkPrompts(read_prompts(paths), spec.benchmark_ngram, spec.benchmark_overlap)
