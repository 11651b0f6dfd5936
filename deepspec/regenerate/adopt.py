"""Answers that the target gave before, adopted instead of asking: logs of the served target, say."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deepspec.artifacts import checksum
from deepspec.errors import SourceError
from deepspec.formats.conversations import AnswerRow, Message, PromptRow, parse_conversation
from deepspec.formats.rows import read_rows
from deepspec.placement import Placement
from deepspec.regenerate.conversation import answer_row, without_answer
from deepspec.regenerate.parts import Book
from deepspec.report import Report

MISSING = "the answers file has no answer to this prompt"
REPORT_EVERY = 1000


def adopt_answers(book: Book, digest: str, placement: Placement, scratch: Path, report: Report) -> None:
    """Finish every row of the book with the answer that a file holds for it.

    A row of the file belongs to a prompt when both say the same apart from what the assistant said.

    Args:
        book: the rows.
        digest: checksum of the file; `placement.locations` says where it lies.
        placement: knows the file.
        scratch: for the index of the file.
        report: who listens.

    Raises:
        SourceError: the file is not there, is not the one that was planned with, or holds a bad row.
    """
    path = _locate(digest, placement)
    with closing(_index(path, scratch / "answers.sqlite")) as index:
        for part, prompt in book.todo():
            found = index.execute("SELECT row FROM answers WHERE key = ?", (_key(prompt),)).fetchone()
            given = json.loads(found[0]) if found else None
            book.finish(
                part, without_answer(prompt, "skipped", MISSING, False) if given is None else _adopt(prompt, given)
            )
            if book.done % REPORT_EVERY == 0:
                report.progress(book.done, book.total, "rows", "adopting answers")
            _commit_complete(book)
    _commit_complete(book)
    report.progress(book.done, book.total, "rows", "adopting answers")


def _commit_complete(book: Book) -> None:
    for part in book.take_complete(keep_errors=False):
        book.commit(part)


def _locate(digest: str, placement: Placement) -> Path:
    if digest not in placement.locations:
        raise SourceError(f"no place is known for the answers with checksum {digest}; give the file with --answers")
    path = Path(placement.locations[digest])
    if not path.is_file():
        raise SourceError("no such answers file; check the path", path)
    if checksum(path) != digest:
        raise SourceError("the answers file changed since the run was planned; run again", path)
    return path


def _index(path: Path, database: Path) -> sqlite3.Connection:
    """Return a table of the file's rows by key: memory does not grow with the file."""
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, row TEXT) WITHOUT ROWID")
    connection.execute("DELETE FROM answers")
    rows = ((_key(conversation), json.dumps({**row, **conversation})) for row, conversation in _conversations(path))
    connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
    connection.commit()
    return connection


def _conversations(path: Path) -> Iterable[tuple[dict[str, Any], Mapping[str, Any]]]:
    for line, row in read_rows(path):
        yield row, parse_conversation(row, path, line)


def _key(conversation: Mapping[str, Any]) -> bytes:
    """Return a hash of everything that the assistant did not say."""
    said = [_frame(message) for message in conversation["messages"]]
    text = json.dumps([said, conversation.get("tools") or []], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()[:16]


def _frame(message: Message) -> Any:
    return None if message["role"] == "assistant" else [message["role"], message["content"]]


def _adopt(prompt: PromptRow, given: Mapping[str, Any]) -> AnswerRow:
    """Return the answer row of a prompt with the turns that the file gives."""
    turns = [index for index, message in enumerate(given["messages"]) if message["role"] == "assistant"]
    said = [given["messages"][index] for index in turns]
    if not all(message["content"] or "tool_calls" in message for message in said):
        return without_answer(prompt, "skipped", MISSING, False)
    messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in given["messages"]]
    reasoning = {
        str(index): message["reasoning_content"]
        for index, message in zip(turns, said, strict=True)
        if "reasoning_content" in message
    }
    return answer_row(
        prompt,
        messages=messages,
        status="success",
        finish_reasons=given.get("finish_reasons") or ["stop"] * len(turns),
        thinking=bool(given.get("thinking", bool(reasoning))),
        generated=turns,
        **({"reasoning": reasoning} if reasoning else {}),
        **({"token_ids": given["token_ids"]} if given.get("token_ids") else {}),
    )
