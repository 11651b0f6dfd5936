"""Answers by what they answer: bytes one after another in a file of scratch, and a small index of where each lies."""

import json
import sqlite3
from pathlib import Path
from typing import Any

_CACHE_KIB = 1 << 16
_TABLE = "CREATE TABLE answers (key BLOB PRIMARY KEY, refused TEXT, start INTEGER, size INTEGER) WITHOUT ROWID"
_PUT = """
    INSERT INTO answers VALUES (?, '', ?, ?)
    ON CONFLICT (key) DO UPDATE SET refused = '', start = excluded.start, size = excluded.size WHERE refused != ''
"""


class Shelf:
    """One answer a key, the first that can be used; memory does not grow with their number. Close it when done.

    Args:
        folder: where the two files are made anew; they are gone when it is closed.
    """

    def __init__(self, folder: Path) -> None:
        """Begin empty."""
        self._paths = [folder / "answers.rows", folder / "answers.sqlite"]
        self._remove()
        self._rows = self._paths[0].open("w+b")
        self._index = sqlite3.connect(self._paths[1], isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._index.execute(f"PRAGMA {setting}")  # scratch: what a crash leaves is made anew
        self._index.execute(_TABLE)
        self._index.execute("BEGIN")

    def put(self, key: bytes, fields: bytes) -> bool:
        """Keep an answer, the JSON bytes of its fields; False where one that can be used is there already."""
        start = self._rows.tell()
        if not self._index.execute(_PUT, (key, start, len(fields))).rowcount:
            return False
        self._rows.write(fields)
        return True

    def refuse(self, key: bytes, reason: str) -> None:
        """Keep why an answer cannot be used, where none is there."""
        self._index.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, 0, 0)", (key, reason))

    def find(self, key: bytes) -> tuple[dict[str, Any], str] | None:
        """Return the fields of an answer and "", or nothing and why it cannot be used; None where there is none.

        Only after the last `put`.
        """
        found = self._index.execute("SELECT refused, start, size FROM answers WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        refused, start, size = found
        if refused:
            return {}, refused
        self._rows.seek(start)
        return json.loads(self._rows.read(size)), ""

    def close(self) -> None:
        """Remove the files."""
        self._index.close()
        self._rows.close()
        self._remove()

    def _remove(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
