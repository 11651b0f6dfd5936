"""Accounting: the prompts cut into parts, each row finished once, each part committed when all of its rows are.

At every commit `success + error + skipped == input`: duplicates of an id are counted as skipped and give no row.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from deepspec.artifacts import Artifact, PartMark
from deepspec.errors import AnswersError, RowError
from deepspec.lines.bad_rows import BadRows
from deepspec.lines.rows import RowWriter
from deepspec.messages.conversations import AnswerRow, PromptRow
from deepspec.publish import Out
from deepspec.regenerate.chosen import chosen_prompts
from deepspec.regenerate.ledger import Ledger, lock_folder
from deepspec.regenerate.row_counts import Drift, RowCounts, total_counts
from deepspec.regenerate.spec import RegenerateSpec

SHARD = 0
"""One process drives all parts, so they are one shard."""


class AnswerPart:
    """The rows of one part: which belong to it, and which are finished."""

    def __init__(self, number: int, folder: Path) -> None:
        """Open the part's ledger, which may hold rows of an earlier run."""
        self.number = number
        self.ledger = Ledger(folder / f"part-{number:05d}.jsonl")
        self.ids: list[str] = []
        self.duplicates = 0
        self.failed = 0
        """Rows whose errors can pass."""
        self.sealed = False
        """Whether all ids are known."""

    @property
    def is_complete(self) -> bool:
        """Return whether every row is finished."""
        return self.sealed and len(self.ledger) == len(self.ids)

    def finish(self, row: AnswerRow, can_pass: bool = False) -> None:
        """Note what became of a row; `can_pass` for an error that the next run may not meet."""
        self.failed += can_pass
        self.ledger.append(row, can_pass)

    def rows(self) -> Iterator[AnswerRow]:
        """Yield the finished rows in the order of the prompts."""
        return map(self.ledger.read, self.ids)


class Book:
    """All parts of one run.

    Args:
        spec: what is regenerated.
        prompts: the prompts.
        out: where parts are committed and ledgers are kept.
        drift: tells answered rows of which something is not as it should be.
    """

    def __init__(self, spec: RegenerateSpec, prompts: Artifact, out: Out, drift: Drift) -> None:
        """Read the ids once: how many there are, and which come twice.

        Raises:
            AnswersError: another process works on the same answers.
        """
        self._spec = spec
        self._prompts = chosen_prompts(prompts, spec.held_out)
        self._out = out
        self._drift = drift
        self._folder = out.scratch / "ledger"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self._folder)
        self._open: dict[int, AnswerPart] = {}
        self.total, self._twice = _survey(self._prompts)
        self._bad = BadRows(spec.bad_share, "regenerate.bad_share")
        self.done = 0
        """Rows that are finished, in committed parts, ledgers, or as duplicates."""
        self.answered = 0
        """Rows that this run finished."""
        self.kept = 0
        """Rows of `done` that no later run asks again."""
        self.failed = 0
        """Rows left to the next run."""

    def todo(self) -> Iterator[tuple[AnswerPart, PromptRow]]:
        """Yield every row that is not finished, with its part; parts are sealed on the way.

        Raises:
            BadRowsError: too many rows are bad of those that an earlier run finished.
        """
        seen: set[str] = set()
        part: AnswerPart | None = None
        committed = self._committed()
        for index, row in enumerate(self._prompts):
            number, place = divmod(index, self._spec.rows_per_part)
            if place == 0:
                self._seal(part)
                part = None if number in committed else self._start(number)
            is_duplicate = self._is_duplicate(row["id"], seen)
            if part is None or is_duplicate or row["id"] in part.ledger:
                self.done += 1
                self.kept += 1
            if part is None:
                continue
            if is_duplicate:
                part.duplicates += 1
                continue
            part.ids.append(row["id"])
            if row["id"] not in part.ledger:
                self._bad.add()  # those under way count as good: bad ones often come back first
                yield part, row
        self._seal(part)

    def finish(self, part: AnswerPart, row: AnswerRow, can_pass: bool = False) -> None:
        """Note what became of a row.

        Raises:
            BadRowsError: too many rows are bad, this one among them; it is noted all the same.
        """
        part.finish(row, can_pass)
        self.done += 1
        self.answered += 1
        self.kept += not can_pass
        self._judge(row)

    def check(self) -> None:
        """End the run where too many rows are bad.

        Raises:
            BadRowsError: they are; what was answered is kept.
        """
        self._bad.check()

    def take_complete(self, keep_errors: bool) -> list[AnswerPart]:
        """Return the parts that can be committed now; those that wait for another run are closed and left."""
        complete = [part for part in self._open.values() if part.is_complete]
        for part in complete:
            del self._open[part.number]
        kept = [part for part in complete if keep_errors or not part.failed]
        for part in complete:
            if part not in kept:
                self.failed += part.failed
                part.ledger.close()
        return kept

    def commit(self, part: AnswerPart) -> PartMark:
        """Publish one complete part and forget its ledger.

        Raises:
            AnswersError: the rows do not add up; nothing is committed.
        """
        name = f"part-{part.number:05d}.jsonl.zst"
        path = self._folder / name
        tally = RowCounts(self._drift)
        with RowWriter(path) as writer:
            for row in part.rows():
                tally.add(row)
                writer.write(dict(row))
        tally.add_duplicates(part.duplicates)
        counts = tally.counts()
        _check(counts, len(part.ids) + part.duplicates, f"part {part.number} of {self._out.prefix}")
        told = {"sampling": self._spec.sampling.model_dump(mode="json")}
        mark = self._out.commit_part(SHARD, part.number, {name: path}, counts, told)
        part.ledger.remove()
        return mark

    def close(self) -> None:
        """Close the ledgers of parts that are not complete; the next run goes on with them."""
        for part in self._open.values():
            part.ledger.close()
        self._lock.close()

    def summary(self) -> dict[str, Any]:
        """Return the counts of all committed parts together.

        Raises:
            AnswersError: rows are missing.
        """
        counts = total_counts(mark.counts for mark in self._out.parts())
        _check(counts, self.total, self._out.prefix)
        return {**counts, "sampling": self._spec.sampling.model_dump(mode="json")}

    def _committed(self) -> set[int]:
        """Return the numbers of committed parts; their rows count among those that may be bad."""
        marks = self._out.parts()
        for mark in marks:
            self._bad.add(mark.counts["input"])
            self._bad.count(mark.counts["bad"])
        self._bad.check_so_far()
        return {mark.part for mark in marks}

    def _start(self, number: int) -> AnswerPart:
        part = self._open[number] = AnswerPart(number, self._folder)
        self._bad.add(len(part.ledger))
        for sample_id in part.ledger.errors:
            self._judge(part.ledger.read(sample_id))
        return part

    def _judge(self, row: AnswerRow) -> None:
        if "reason" in row:
            where = f"{row['id']}: {row.get('error', '')}"
            self._bad.drop(RowError(row["reason"], where), where)
            self._bad.check_so_far()

    def _seal(self, part: AnswerPart | None) -> None:
        if part is not None:
            part.sealed = True

    def _is_duplicate(self, sample_id: str, seen: set[str]) -> bool:
        if _hash(sample_id) not in self._twice:
            return False
        if sample_id in seen:
            return True
        seen.add(sample_id)
        return False


def _check(counts: Mapping[str, Any], wanted: int, where: str) -> None:
    accounted = counts["success"] + counts["error"] + counts["skipped"]
    if not accounted == counts["input"] == wanted:
        raise AnswersError(
            f"{where}: {counts['success']} success + {counts['error']} error + {counts['skipped']} skipped "
            f"for {wanted} prompts; rows are missing or doubled, run again"
        )


def _survey(prompts: Iterable[PromptRow]) -> tuple[int, set[int]]:
    """Return the number of rows, and the hashes of ids that may come more than once."""
    hashes = array("Q", (_hash(row["id"]) for row in prompts))
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0), return_counts=True)
    return len(hashes), {int(value) for value in values[counts > 1]}


def _hash(sample_id: str) -> int:
    return xxhash.xxh3_64_intdigest(sample_id.encode())
