"""The questions of a benchmark, read from where it lies."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.disk import checksum
from deepspec.errors import SourceError
from deepspec.formats.benchmarks import HUB, HUB_BENCHMARKS, Benchmark, HubBenchmark
from deepspec.lines.rows import is_text, read_rows

HUB_FILES = "hf://datasets/{dataset}@{revision}/{files}"
"""Where files of a dataset's repository lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkQuestion:
    """One row of a benchmark."""

    question_id: str
    """`NAME/row`, rows counted from 0 in the whole benchmark."""
    turns: tuple[str, ...]


def read_questions(benchmark: Benchmark, location: str, count: int | None, seed: int) -> list[BenchmarkQuestion]:
    """Return the questions of a benchmark, or a seeded choice of them, in the order of its rows.

    Args:
        benchmark: name and digest.
        location: where it lies; a file must have the digest's checksum.
        count: how many at most; None: its default size on the hub, every row of a file.
        seed: of the choice; the same seed chooses the same rows, and fewer of them when asked for fewer.

    Raises:
        SourceError: it is not there, has changed since it was resolved, or holds a row without turns.
    """
    if benchmark.digest.startswith(HUB):
        turns = list(_hub_turns(benchmark))
        count = HUB_BENCHMARKS[benchmark.name].size if count is None else count
    else:
        turns = list(_file_turns(benchmark, Path(location)))
    questions = [
        BenchmarkQuestion(question_id=f"{benchmark.name}/{row}", turns=tuple(texts)) for row, texts in enumerate(turns)
    ]
    return questions if count is None else _chosen(questions, count, seed)


def _chosen(questions: Sequence[BenchmarkQuestion], count: int, seed: int) -> list[BenchmarkQuestion]:
    def lot(question: BenchmarkQuestion) -> bytes:
        return hashlib.sha256(f"{seed}:{question.question_id}".encode()).digest()

    drawn = {question.question_id for question in sorted(questions, key=lot)[:count]}
    return [question for question in questions if question.question_id in drawn]


def _hub_turns(benchmark: Benchmark) -> Iterator[list[str]]:
    source = HUB_BENCHMARKS[benchmark.name]
    revision = benchmark.digest.rpartition("@")[2]
    where = f"benchmark {benchmark.name}: {source.dataset}@{revision}"
    try:
        yield from (source.turns(row) for row in _hub_rows(source, revision))
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{where} cannot be loaded: {error}; or give a folder of files (--benchmarks-dir)") from error
    except KeyError as error:
        raise SourceError(f"{where} has no column {error}; its rows have changed, give a folder of files") from error


def _hub_rows(source: HubBenchmark, revision: str) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset  # takes most of a second: only where the hub is asked

    if source.files is None:
        rows: Iterable[Mapping[str, Any]] = load_dataset(
            source.dataset, source.subset, split=source.split, revision=revision
        )
        return rows
    files = HUB_FILES.format(dataset=source.dataset, revision=revision, files=source.files)
    found: Iterable[Mapping[str, Any]] = load_dataset("json", data_files=files, split=source.split)
    return found


def _file_turns(benchmark: Benchmark, path: Path) -> Iterator[list[str]]:
    if not path.is_file():
        raise SourceError(f"benchmark {benchmark.name} is gone; wanted the file with {benchmark.digest}", path)
    if checksum(path) != benchmark.digest:
        raise SourceError(f"benchmark {benchmark.name} has changed since it was resolved; run the plan again", path)
    for line, row in read_rows(path):
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns or not all(is_text(turn) and turn for turn in turns):
            raise SourceError('wanted {"turns": [text, …]} with at least one turn', path, line)
        yield turns
