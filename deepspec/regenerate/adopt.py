"""Answers that the target gave before, adopted instead of asking: logs of the served target, say.

The file is read once into a shelf in scratch, where each prompt finds its answer; what cannot be used is counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deepspec.asking.conversation import answer_row, without_answer
from deepspec.chat.clock import DATE
from deepspec.disk import checksum
from deepspec.errors import RowError, SourceError
from deepspec.lines.bad_rows import BadRows, one_row, rows_told
from deepspec.lines.lines import LONGEST_LINE
from deepspec.lines.rows import Row, dump_row, read_rows
from deepspec.messages.conversations import AnswerRow, Conversation, Message, PromptRow, parse_conversation
from deepspec.placement import Placement
from deepspec.regenerate.logged import NO_ANSWER, SHORT, read_logged
from deepspec.regenerate.parts import Book
from deepspec.regenerate.shelf import Shelf
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.report import Report

REPORT_EVERY = 1000


def adopt_answers(book: Book, spec: RegenerateSpec, placement: Placement, scratch: Path, report: Report) -> None:
    """Finish every row of the book with the answer that a file holds for it.

    A row of the file belongs to a prompt when both say the same apart from what the assistant said; of several the
    first that can be used.

    Args:
        book: the rows.
        spec: names the file and says what becomes of its bad rows.
        placement: knows where the file lies.
        scratch: for the shelf.
        report: who listens.

    Raises:
        SourceError: the file is not there, is not the one that was planned with, or holds no answer to adopt.
        RowError: a row of it cannot be used and the spec says to stop there.
        BadRowsError: more rows of it cannot be used than the spec allows.
    """
    path = _locate(spec.answers, placement)
    with closing(Shelf(scratch)) as shelf:
        _Reading(spec, path, shelf).read(report)
        for part, prompt in book.todo():
            book.finish(part, _adopt(prompt, shelf.find(_key(prompt)), spec))
            if book.done % REPORT_EVERY == 0:
                report.progress(book.done, book.total, "rows", "adopting answers")
            _commit_complete(book)
    _commit_complete(book)
    report.progress(book.done, book.total, "rows", "adopting answers")


class _Reading:
    """One pass over the file: rows that cannot be read are those that prepare drops, counted as there; answers that
    cannot be used, though their prompts can, are counted apart."""

    def __init__(self, spec: RegenerateSpec, path: Path, shelf: Shelf) -> None:
        self._stops = spec.answers_bad_rows == "stop"
        self._path = path
        self._shelf = shelf
        self._rows = BadRows(spec.answers_bad_share, "prepare.bad_share")
        self._answers = BadRows(spec.bad_share, "regenerate.bad_share")
        self._skipped: Counter[str] = Counter()
        self._silent = 0

    def read(self, report: Report) -> None:
        for line, row in read_rows(self._path, self._bad_row, LONGEST_LINE):
            self._rows.add()
            try:
                with one_row("unreadable", self._path, line):
                    conversation = parse_conversation(row)
            except RowError as error:
                self._note(self._rows, error)
            else:
                self._shelve(line, row, conversation)
        self._answers.add(self._rows.read)
        self._rows.check()
        self._answers.check()
        self._tell(report)

    def _bad_row(self, error: RowError) -> None:
        self._rows.add()
        self._note(self._rows, error)

    def _note(self, counts: BadRows, error: RowError) -> None:
        if self._stops:
            raise error
        counts.drop(error)

    def _shelve(self, line: int, row: Row, conversation: Conversation) -> None:
        key = _key(conversation)
        try:
            with one_row("unreadable", self._path, line):
                logged = read_logged(row, conversation)
                fields = dump_row(logged.fields)
        except RowError as error:
            self._note(self._answers, error)
            self._shelf.refuse(key, str(error).removeprefix(f"{self._path}:{line}: "))
            return
        if logged.skipped:
            self._skipped[SHORT[logged.skipped]] += 1
            self._shelf.refuse(key, logged.skipped)
        elif self._shelf.put(key, fields):
            self._silent += not logged.tells_finish
        else:
            self._skipped["duplicate"] += 1

    def _tell(self, report: Report) -> None:
        dropped = self._rows.dropped + self._answers.dropped + self._skipped
        kept = self._rows.read - dropped.total()
        account = rows_told(self._rows.read, kept, dropped, "rows of answers")
        if not kept:
            table = "\n".join(counts.table() for counts in (self._rows, self._answers) if counts.dropped)
            raise SourceError(f"no answer can be adopted: {account}\n{table}".rstrip(), self._path)
        report.log(account)
        if self._silent:
            report.log(f"{self._silent:,} of them do not say how an answer ended; taken as 'stop'")


def _commit_complete(book: Book) -> None:
    for part in book.take_complete(keep_errors=False):
        book.commit(part)


def _locate(digest: str | None, placement: Placement) -> Path:
    if digest is None or digest not in placement.locations:
        raise SourceError(f"no place is known for the answers with checksum {digest}; give the file with --answers")
    path = Path(placement.locations[digest])
    if not path.is_file():
        raise SourceError("no such answers file; check the path", path)
    if checksum(path) != digest:
        raise SourceError("the answers file changed since the run was planned; run again", path)
    return path


def _key(conversation: Mapping[str, Any]) -> bytes:
    """Return a hash of everything that the assistant did not say."""
    said = [_frame(message) for message in conversation["messages"]]
    text = json.dumps([said, conversation.get("tools") or []], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()[:16]


def _frame(message: Message) -> Any:
    return None if message["role"] == "assistant" else [message["role"], message["content"]]


def _adopt(prompt: PromptRow, found: tuple[dict[str, Any], str] | None, spec: RegenerateSpec) -> AnswerRow:
    """Return the answer row of a prompt with what the shelf holds for it."""
    fields, refused = found or ({}, NO_ANSWER)
    if refused:
        return without_answer(prompt, "skipped", refused, False)
    if spec.date != DATE and "date" not in fields:
        fields["date"] = spec.date.isoformat()
    return answer_row(prompt, status="success", **fields)
