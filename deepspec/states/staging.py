"""Room for what engines write: a limit in bytes, names that tell runs apart, and an end to what a killed run left."""

import asyncio
import fcntl
import os
import secrets
import shutil
import time
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path

from deepspec.engines.client import NAMED
from deepspec.errors import EngineError

PREFIX = NAMED
_OF_FREE = 0.8
"""Share of what is free in a folder that this run takes at most."""
YOUNG_SECONDS = 60.0
"""A file whose run has no lock yet is left alone for so long: the lock is made when the first file is seen."""


class Staging:
    """The files that one run has engines write.

    Args:
        limit: bytes of states that are asked for and not in a part yet.
    """

    def __init__(self, limit: int) -> None:
        """Hold no folder yet: engines say which they use."""
        self._limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._token = secrets.token_hex(6)
        self._numbers = count()
        self._open: set[str] = set()
        self._held: dict[Path, int] = {}

    def name(self) -> str:
        """Return a name for one request, which is part of its file's."""
        name = f"{PREFIX}{self._token}-{next(self._numbers)}"
        self._open.add(name)
        return name

    def done(self, name: str) -> None:
        """Note that a request's file is gone."""
        self._open.discard(name)

    def check_fits(self, size: int, what: str) -> None:
        """Check that something can ever be asked for.

        Raises:
            EngineError: it is larger than all of the room.
        """
        if size > self._limit:
            raise EngineError(
                f"{what} takes {size:,} bytes of states, more than the {self._limit:,} that may wait in the staging "
                "folder (DEEPSPEC_STAGING_GB, and four fifths of what is free there); make room, take a larger folder "
                "with engine-args --staging FOLDER, or lower cache.max_length"
            )

    async def take(self, size: int) -> None:
        """Wait until so many bytes are free, in the order of the calls, and take them."""
        if self._used + size <= self._limit and not self._waiting:
            self._used += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        await turn

    def free(self, size: int) -> None:
        """Give bytes back."""
        self._used -= size
        while self._waiting and self._used + self._waiting[0][0] <= self._limit:
            wanted, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._used += wanted
                turn.set_result(None)

    def hold(self, folder: Path) -> int:
        """Show that this run lives, to others that use the folder; delete what dead runs left there.

        Returns:
            The number of files deleted.
        """
        if folder in self._held:
            return 0
        self._limit = min(self._limit, int(shutil.disk_usage(folder).free * _OF_FREE))
        self._held[folder] = _locked(folder / f"{PREFIX}{self._token}.run")
        return sweep(folder)

    def leave(self) -> None:
        """Delete what this run left; where engines may still write for it, its lock stays, and is free: it is dead."""
        for folder, held in self._held.items():
            for path in folder.glob(f"*{PREFIX}{self._token}*"):
                if path.suffix != ".run" or not self._open:
                    path.unlink(missing_ok=True)
            os.close(held)
        self._held.clear()


def _locked(path: Path) -> int:
    """Return a new file, locked; made again where another run's sweep took it in between."""
    while True:
        held = os.open(path, os.O_CREAT | os.O_RDWR, 0o660)
        fcntl.flock(held, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_ino == os.fstat(held).st_ino:
            return held
        os.close(held)


def sweep(folder: Path) -> int:
    """Delete the files of runs that are dead, and return how many there were.

    A run that lives holds the lock of its `deepspec-TOKEN.run`; the kernel frees it, however the run ends.
    """
    runs = {path.stem: _is_dead(path) for path in folder.glob(f"{PREFIX}*.run")}
    deleted = 0
    for path in folder.glob(f"*{PREFIX}*"):
        dead = next((runs[run] for run in runs if run in path.name), None)
        with suppress(OSError):
            if dead or (dead is None and time.time() - path.stat().st_mtime > YOUNG_SECONDS):
                path.unlink()
                deleted += path.suffix != ".run"
    return deleted


def _is_dead(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True
