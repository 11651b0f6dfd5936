"""Where the parts of a cache come from: the store's own files, or files made in a bounded folder when needed."""

import fcntl
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from torch import Tensor

from deepspec.artifacts import Artifact
from deepspec.errors import BudgetError, CorruptArtifactError, NotPublishedError
from deepspec.records.batch import Record
from deepspec.target_cache.codec import Bytes
from deepspec.target_cache.part import ADVICE

FETCHERS = 4
"""Parts fetched at the same time, and asked for ahead of their use."""

_LOCK, _COMING = ".lock", ".coming"
"""Name of the file that a bounded folder is locked by, and how the names of claims in it end."""

_PATIENCE = 0.02
"""Seconds between looks at a bounded folder that is full of what others are making."""

_MAPPED = 4096
"""Parts mapped at once; a process may map some 65 thousand regions."""


class PartReader(Protocol):
    """Reads the samples of one part."""

    def record(self, row: Mapping[str, Any]) -> Record:
        """Return the sample that a row of the index names."""

    def tokens(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return its token ids and loss mask alone."""


Open = Callable[[str, Bytes], PartReader]
"""(name, bytes) -> part."""


class PartSource(Protocol):
    """Gives the parts of one cache by name."""

    def get(self, name: str) -> PartReader:
        """Return a part, waiting for it where it has to come first."""

    def prefetch(self, name: str) -> None:
        """Say that a part will be needed soon."""


class BoundedFolder:
    """A local folder of files that can be made again, which never holds more than its limit.

    The folder is the state, shared by all threads and processes that use it: the time of last use is a file's own, and
    who makes a file holds a lock on `NAME.coming`, which the kernel frees when its process dies.

    Args:
        folder: made when needed.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Remember folder and limit."""
        self._folder, self._limit = folder, limit

    def file(self, name: str, size: int, make: Callable[[Path], None]) -> Path:
        """Return a file, made now if it is not there; others go first, those longest unused.

        Args:
            name: of the file, without dots.
            size: bytes that it will take at most.
            make: writes the file, in one step, to the path that it is given.

        Raises:
            BudgetError: the file alone is larger than the limit.
        """
        path = self._folder / name
        if self.touch(path):
            return path
        if size > self._limit:
            raise BudgetError(f"a part of {size} bytes does not fit {self._folder}, limited to {self._limit}; raise it")
        self._folder.mkdir(parents=True, exist_ok=True)
        claim = self._claim(path, size)
        if claim is not None:
            with claim:
                try:
                    make(path)
                finally:
                    Path(claim.name).unlink()
        return path

    def touch(self, path: Path) -> bool:
        """Note that a file is used now; return whether it is there."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _claim(self, path: Path, size: int) -> IO[str] | None:
        """Make room for a file and return the lock on its making; None where another has made it meanwhile."""
        while True:
            with self._turn():
                if self.touch(path):
                    return None
                coming = self._coming()
                if path.name not in coming and self._make_room(size, coming):
                    claim = path.with_name(f"{path.name}{_COMING}").open("w")
                    fcntl.flock(claim, fcntl.LOCK_EX)
                    claim.write(str(size))
                    claim.flush()
                    return claim
            time.sleep(_PATIENCE)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one at a time look at the folder and decide."""
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _coming(self) -> dict[str, int]:
        """Return what is being made: name -> bytes. Claims whose process is gone are removed."""
        found: dict[str, int] = {}
        for path in self._folder.glob(f"*{_COMING}"):
            with suppress(FileNotFoundError), path.open() as claim:
                if _is_held(claim):
                    found[path.name.removesuffix(_COMING)] = int(claim.read())
                else:
                    path.unlink()
        return found

    def _make_room(self, size: int, coming: Mapping[str, int]) -> bool:
        """Delete files, longest unused first, until one of a size fits beside the rest; return whether it does."""
        allowed = self._limit - size - sum(coming.values())
        present = []
        for path in self._folder.iterdir():
            if path.name != _LOCK and path.name.split(".")[0] not in coming:
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    present.append((stat.st_mtime_ns, stat.st_size, path))
        used = sum(size for _, size, _ in present)
        for _, freed, path in sorted(present):
            if used <= allowed:
                break
            path.unlink(missing_ok=True)
            used -= freed
        return used <= allowed


def _is_held(claim: IO[str]) -> bool:
    try:
        fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


class LocalParts:
    """Parts in a local store: its own files, mapped.

    Args:
        artifact: the cache.
        open_part: how to read one.
    """

    def __init__(self, artifact: Artifact, open_part: Open) -> None:
        """Open nothing yet."""
        self._artifact, self._open = artifact, open_part
        self._mapped: OrderedDict[str, PartReader] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> PartReader:
        """Return a part. Its samples are checked one by one, so that the file is not read twice.

        Raises:
            CorruptArtifactError: it is gone, or not of the size that the manifest says.
        """
        with self._lock:
            if name not in self._mapped:
                self._mapped[name] = self._open(name, map_file(self._checked(name)))
                if len(self._mapped) > _MAPPED:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(name)
            return self._mapped[name]

    def prefetch(self, name: str) -> None:
        """Do nothing: a mapped file is there."""

    def _checked(self, name: str) -> Path:
        entry = self._artifact.entry(name)
        path = Path(self._artifact.store.root, self._artifact.prefix, entry.key)
        if not path.is_file():
            raise CorruptArtifactError(f"{path} is gone; {ADVICE}")
        size = path.stat().st_size
        if size != entry.size:
            raise CorruptArtifactError(f"{path} has {size} bytes, its manifest says {entry.size}; {ADVICE}")
        return path


class MadeParts:
    """Parts that are made in a bounded folder, ahead of their use where it is known.

    Args:
        folder: where they lie.
        make: returns the file of a part, made where it is not there.
        open_part: how to read one.
        workers: parts made at the same time.
    """

    def __init__(self, folder: BoundedFolder, make: Callable[[str], Path], open_part: Open, workers: int) -> None:
        """Make nothing yet."""
        self._folder, self._make, self._open = folder, make, open_part
        self._mapped: dict[str, tuple[Path, PartReader]] = {}
        self._coming: dict[str, Future[Path]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="make-part")

    def get(self, name: str) -> PartReader:
        """Return a part, waiting for it where it is on its way.

        Raises:
            CorruptArtifactError: it is gone, or not what the manifest says.
        """
        with self._lock:
            if name in self._mapped:
                path, part = self._mapped[name]
                self._folder.touch(path)
                return part
        path, data = self._made(name)
        part = self._open(name, data)
        with self._lock:
            self._drop_evicted()
            self._mapped[name] = path, part
        return part

    def prefetch(self, name: str) -> None:
        """Start to make a part."""
        with self._lock:
            if name not in self._mapped:
                self._start(name)

    def _start(self, name: str) -> Future[Path]:
        if name not in self._coming:
            self._coming[name] = self._pool.submit(self._make, name)
        return self._coming[name]

    def _made(self, name: str) -> tuple[Path, Bytes]:
        while True:
            with self._lock:
                coming = self._start(name)
            path = coming.result()
            with self._lock:
                self._coming.pop(name, None)
            with suppress(FileNotFoundError):  # evicted before it was mapped, for the limit is tight: make it again
                return path, map_file(path)

    def _drop_evicted(self) -> None:
        """Unmap parts whose file was evicted: a mapped file keeps its disk space."""
        for name in [name for name, (path, _) in self._mapped.items() if not path.exists()]:
            del self._mapped[name]


def fetched_parts(artifact: Artifact, open_part: Open, folder: BoundedFolder) -> MadeParts:
    """Return the parts of a cache in a remote store, fetched when needed."""

    def fetch(name: str) -> Path:
        entry = artifact.entry(name)
        key = f"{artifact.prefix}/{entry.key}"

        def get(path: Path) -> None:
            try:
                artifact.store.get_file(key, path)
            except NotPublishedError as error:
                raise CorruptArtifactError(f"{artifact.store.uri(key)} is gone; {ADVICE}") from error
            size = path.stat().st_size
            if size != entry.size:
                path.unlink()
                told = f"has {size} bytes, its manifest says {entry.size}"
                raise CorruptArtifactError(f"{artifact.store.uri(key)} {told}; {ADVICE}")

        return folder.file(entry.checksum.removeprefix("xxh3:"), entry.size, get)

    return MadeParts(folder, fetch, open_part, FETCHERS)


def map_file(path: Path) -> Bytes:
    """Return a file's bytes as private, writable memory: nothing is read before it is used."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)
