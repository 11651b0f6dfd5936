"""The ledger: what is known about the rows of one part before the part is committed.

An append-only file of JSON lines in local scratch, one line per finished row, written at once and fsynced in
batches. After a kill it holds every row but the few in flight; a line that was torn by it, and whatever a failing
disk left behind it, is cut off, and those rows are asked again.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

from deepspec.errors import AnswersError, StoreError
from deepspec.lines.rows import dump_row
from deepspec.messages.conversations import AnswerRow

SYNC_SECONDS = 1.0


class Ledger:
    """Finished rows of one part, by id."""

    def __init__(self, path: Path) -> None:
        """Open or create the file and read which rows it holds."""
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self.errors: list[str] = []
        """Ids of the errors that an earlier run left here."""
        self._file = path.open("ab+", buffering=0)  # nothing is left in a buffer when the disk is full
        self._load()
        self._synced_at = time.monotonic()

    def __contains__(self, sample_id: object) -> bool:
        """Return whether a row is finished."""
        return sample_id in self._places

    def __len__(self) -> int:
        """Return how many rows are finished."""
        return len(self._places)

    def append(self, row: AnswerRow, can_pass: bool = False) -> None:
        """Note a finished row.

        Args:
            row: the answer.
            can_pass: it failed with an error that can pass: a ledger opened later asks it again.

        Raises:
            StoreError: the disk is full or failed; a ledger opened later has all rows before this one.
        """
        line = dump_row({"can_pass": can_pass, "row": row})
        try:
            self._write(line)  # survives a kill; sync survives a power cut
            if time.monotonic() - self._synced_at > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error}); free some space and run again") from error
        self._places[row["id"]] = (self._end, len(line))
        self._end += len(line)

    def sync(self) -> None:
        """Make what was noted survive a power cut."""
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def read(self, sample_id: str) -> AnswerRow:
        """Return a finished row."""
        start, length = self._places[sample_id]
        return cast(AnswerRow, json.loads(os.pread(self._file.fileno(), length, start))["row"])

    def close(self) -> None:
        """Sync and close the file."""
        self.sync()
        self._file.close()

    def remove(self) -> None:
        """Forget everything: the part is committed."""
        self._file.close()
        self.path.unlink()

    def _load(self) -> None:
        self._end = 0
        with self.path.open("rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is None:
                    break
                if not entry["can_pass"]:
                    self._places[entry["row"]["id"]] = (self._end, len(line))
                    self.errors += [entry["row"]["id"]] if entry["row"]["status"] == "error" else []
                self._end += len(line)
        self._file.truncate(self._end)

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[self._file.write(left) :]


def lock_folder(folder: Path) -> BinaryIO:
    """Return an open file: until it is closed, by whatever end of the process, no other process gets one.

    Raises:
        AnswersError: another process works in the folder.
    """
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise AnswersError(
            f"another process regenerates the same answers and writes to {folder}; wait for its end, or stop it"
        ) from None
    return file


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a whole entry, or None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"can_pass", "row"} <= entry.keys() else None
