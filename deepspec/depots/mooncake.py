"""States in the memory of the engine's machine, read over the network: a Mooncake store. Experimental.

    mooncake://HOST:PORT           its master; over TCP
    mooncake+rdma://HOST:PORT      over RDMA, which was never run here

Mooncake promises less than a store on disks: what a machine holds is gone with it, and a machine that is full forgets
what was put first. So what is missing is a fault that passes, and is asked of the engine again; whether bytes are those
that were put is told by their own checksum (`deepspec.states.file`), as for any other place.
"""

import mmap
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from deepspec.errors import FullDiskError, RefusedError, SpecError, StoreError
from deepspec.store.entries import StoreEntry

SCHEMES = {"mooncake": "tcp", "mooncake+rdma": "rdma"}
"""Scheme of a URL -> Mooncake's name of the transport."""
PACKAGE = "mooncake.store"
MISSING, FULL = -704, -200
"""What Mooncake returns for a key that is not there, and where memory is full."""
BUFFER = 1 << 30
"""Bytes of a process through which all that it puts and reads passes: one file is no larger, and several wait."""
CONNECT_SECONDS = 5.0
"""For which its master may not answer; Mooncake itself would wait for a minute."""
FILLED = 0.9
"""Share of its memory that a process fills: behind that Mooncake begins to forget."""
_ROOT = re.compile(r"(mooncake(?:\+rdma)?)://([^/\s:\[\]]+):(\d+)((?:/[^/\s]+)*)/?")


class MooncakeMemory:
    """What a carrier puts and a run reads, with the methods of a `Store` that both use.

    Args:
        root: URL of the master, and a prefix of keys behind it.
        room: bytes of this process's memory that hold what it puts; 0: it only reads.

    Raises:
        SpecError: the URL is none, or the package is not installed.
    """

    def __init__(self, root: str, room: int = 0) -> None:
        """Name the place; nothing is asked yet."""
        found = _ROOT.fullmatch(root)
        if found is None:
            raise SpecError(f"{root!r} is no Mooncake store; wanted mooncake://HOST:PORT, of its master")
        scheme, host, port, self._prefix = found.groups()
        self.root = root.rstrip("/")
        self._transport, self._room = SCHEMES[scheme], room
        self._host, self._port = host, int(port)
        self._lock, self._client = threading.Lock(), None
        self._passing, self._spare = threading.Condition(), BUFFER
        self._coming: dict[str, int] = {}
        self._put: dict[str, StoreEntry] = {}
        try:
            self._package: Any = import_module(PACKAGE)
        except ImportError as error:
            raise SpecError(
                f"{root} needs Mooncake, which does not load here ({error}); run: pip install "
                "'deepspec[mooncake]', and apt-get install libibverbs1 libnuma1"
            ) from error

    def uri(self, key: str) -> str:
        """Return where a key lies."""
        return f"{self.root}/{key}"

    def check_writable(self) -> None:
        """Return once the master answers.

        Raises:
            StoreError: it does not.
        """
        self._connected()

    def put_file(self, path: Path, key: str) -> None:
        """Put the bytes of a file into this process's memory; the file stays.

        Raises:
            FullDiskError: nobody has read what was put before.
            RefusedError: no file of its size can ever be put.
            StoreError: Mooncake does not take it.
        """
        size, most, client = path.stat().st_size, min(BUFFER, self._most), self._connected()
        if size > most:
            raise RefusedError(
                f"{self.uri(key)} would take {size} bytes, more than the {most} of one object here; lower "
                "cache.max_length, give more room (DEEPSPEC_STAGING_GB), or take a store on disks"
            )
        self._reserve(key, size)
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
                self._share(size),
            ):
                code = client.put(self._name(key), data, self._here(client))
            if code == FULL:
                raise FullDiskError(f"no room for {self.uri(key)}: the memory of this machine is full of states")
            if code != 0:
                raise StoreError(f"cannot put {self.uri(key)}: Mooncake returned {code}")
            with self._lock:
                self._put[key] = StoreEntry(size=size, modified=time.time())
        finally:
            with self._lock:
                self._coming.pop(key)

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a key.

        Raises:
            StoreError: it is not there, or could not be read.
        """
        size = self.size(key)
        with self._share(size):
            data: bytes = self._connected().get(self._name(key))
        if len(data) != size:
            raise StoreError(f"{self.uri(key)} gave {len(data)} of {size} bytes; it may have been forgotten meanwhile")
        return data

    def get_file(self, key: str, path: Path) -> None:
        """Copy a key to a local file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.read_bytes(key))

    def size(self, key: str) -> int:
        """Return the bytes of a key.

        Raises:
            StoreError: it is not there.
        """
        size = int(self._connected().get_size(self._name(key)))
        if size < 0:
            raise StoreError(
                f"{self.uri(key)} is not there (Mooncake returned {size}): it was forgotten for lack of memory, the "
                "process that held it has ended, or carrier and run name different masters"
            )
        return size

    def delete(self, key: str) -> None:
        """Remove a key; a key that is not there is no error."""
        code = self._connected().remove(self._name(key), True)  # though it was read a moment ago
        with self._lock:
            self._put.pop(key, None)
        if code not in (0, MISSING):
            raise StoreError(f"cannot delete {self.uri(key)}: Mooncake returned {code}")

    def entries(self, prefix: str) -> Mapping[str, StoreEntry]:
        """Return what this process has put below a prefix, and nobody has deleted; others' memory is theirs."""
        client = self._connected()
        with self._lock:
            put = dict(self._put)
        gone = [key for key in put if not client.is_exist(self._name(key))]
        with self._lock:
            for key in gone:
                self._put.pop(key, None)
        return {key: put[key] for key in put if key not in gone and key.startswith(prefix)}

    @property
    def _most(self) -> int:
        return int(FILLED * self._room)

    def _name(self, key: str) -> str:
        """Return a key as Mooncake has it: its prefix is part of it, whichever part of the URL that stands in."""
        return f"{self._prefix}/{key}".lstrip("/")

    def _here(self, client: Any) -> Any:
        """Return where an object is to lie: in this very process, however many others have room, and not forgotten."""
        config = self._package.ReplicateConfig()
        config.preferred_segment, config.with_hard_pin = client.get_hostname(), True
        return config

    @contextmanager
    def _share(self, size: int) -> Iterator[None]:
        """Have so many bytes of the buffer for as long as the block runs; one of any size passes alone."""
        size = min(size, BUFFER)
        with self._passing:
            self._passing.wait_for(lambda: self._spare >= size)
            self._spare -= size
        try:
            yield
        finally:
            with self._passing:
                self._spare += size
                self._passing.notify_all()

    def _reserve(self, key: str, size: int) -> None:
        """Take room for an object; where it does not fit beside all that were put, look which were read meanwhile.

        Raises:
            FullDiskError: there is none.
        """
        if not self._fits(key, size):
            self.entries("")
            if not self._fits(key, size):
                raise FullDiskError(
                    f"no room for {self.uri(key)} beside states that nobody has read yet: {self._most} bytes at most; "
                    "give the carrier more (DEEPSPEC_STAGING_GB), or the run less"
                )

    def _fits(self, key: str, size: int) -> bool:
        """Take room for an object if there is any."""
        with self._lock:
            taken = sum(each.size for each in self._put.values()) + sum(self._coming.values())
            if taken + size > self._most:
                return False
            self._coming[key] = size
            return True

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        try:
            with socket.create_connection((self._host, self._port), CONNECT_SECONDS) as seen:
                own = seen.getsockname()[0]  # under which the master's side sees this machine
        except OSError as error:
            raise StoreError(
                f"no master of Mooncake answers at {self.root}: {error}; is mooncake_master up?"
            ) from error
        client, master = self._package.MooncakeDistributedStore(), f"{self._host}:{self._port}"
        code = client.setup(own, "P2PHANDSHAKE", self._room, BUFFER, self._transport, "", master)
        if code != 0:
            raise StoreError(f"Mooncake at {self.root} does not begin: it returned {code}; see what its master says")
        return client
