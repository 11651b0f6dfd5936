"""States that came with answers, kept in a local folder until a cache has them: the engines' own files, one a row.

A file is whole or not there: the folder is the ledger. Each says what it is of and has a checksum, so that nothing is
believed; what is not there, or is not what it should be, is asked for again.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

import xxhash
from torch import Tensor

from deepspec.disk import free_bytes, is_full
from deepspec.engines.failures import AskError
from deepspec.errors import DeepSpecError, EngineError
from deepspec.gathering.kept import UNFINISHED, swept
from deepspec.states.file import read_beginning
from deepspec.states.wanted import Wanted

FOLDER = "while_answering"
OF_FREE = 0.8
"""Share of what is free where the folder lies that files take at most."""
_LABEL = "states that came with the answers"


class KeptAnswers:
    """States of the answers of one address, by what is wanted of them.

    Args:
        scratch: local folder of this machine.
        answers: address of the answers.
        wanted: what the states are of.
        limit: bytes that files may take; None: no limit but the room that there is.
    """

    def __init__(self, scratch: Path, answers: str, wanted: Wanted, limit: int | None = None) -> None:
        """Delete what dead processes left unfinished, and what a lowered limit has no room for."""
        self._folder, self._wanted, self._turn = scratch / FOLDER / answers / wanted.digest, wanted, Lock()
        used = swept(self._folder, limit)
        free = int(free_bytes(self._folder) * OF_FREE)
        self._room = free if limit is None else max(0, min(limit - used, free))
        self.damaged = 0
        """Files that could not be read."""

    def __len__(self) -> int:
        """Return how many rows have a file."""
        return sum(1 for path in self._folder.glob("*.safetensors"))

    def put(self, row: str, size: int, bring: Callable[[Path], None]) -> bool:
        """Keep the file of a row, in place of an earlier one, if there is room; return whether there was.

        Args:
            row: its id.
            size: bytes of the file.
            bring: makes it at a path; what it raises is raised, and nothing is kept then.
        """
        kept = self._path(row)
        with self._turn:
            more = size - _size(kept)
            if more > self._room:
                return False
            self._room -= more
        unfinished = kept.with_name(f"{kept.name}.{os.getpid()}{UNFINISHED}")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            bring(unfinished)
        except (OSError, DeepSpecError) as error:
            unfinished.unlink(missing_ok=True)
            if is_full(error):
                return False
            with self._turn:
                self._room += more
            raise
        unfinished.replace(kept)
        return True

    def get(self, row: str, ids: Sequence[int]) -> Tensor | None:
        """Return the states of the tokens with which a row's answers begin, `(T, layers and the last, D)`.

        None where they are not kept, or are of other tokens; a file that is damaged is deleted.
        """
        path = self._path(row)
        if not path.exists():
            return None
        try:
            return read_beginning(path, ids, self._wanted, _LABEL)
        except (AskError, EngineError) as error:
            if not (isinstance(error, AskError) and error.fault == "odd"):  # else another sample of the row may want it
                self.damaged += 1
                self.drop(row)
            return None

    def drop(self, row: str) -> None:
        """Delete the file of a row."""
        path = self._path(row)
        with self._turn:
            self._room += _size(path)
            path.unlink(missing_ok=True)

    def _path(self, row: str) -> Path:
        return self._folder / f"{xxhash.xxh3_128_hexdigest(row.encode())}.safetensors"


def drop_kept(scratch: Path, answers: str, but: Wanted | None = None) -> None:
    """Delete what is kept of the answers of an address, whatever it is of; but for what is of one."""
    folder = scratch / FOLDER / answers
    for path in folder.glob("*"):
        if but is None or path.name != but.digest:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # there is none, or something is left
        folder.rmdir()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
