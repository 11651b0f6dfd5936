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
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from deepspec.errors import FullDiskError, SpecError, StoreError
from deepspec.store.entries import StoreEntry

SCHEMES = {"mooncake": "tcp", "mooncake+rdma": "rdma"}
"""Scheme of a URL -> Mooncake's name of the transport."""
PACKAGE = "mooncake.store"
MISSING, FULL = -704, -200
"""What Mooncake returns for a key that is not there, and where memory is full."""
LARGEST = 1 << 30
"""Bytes of one file of states, at most: it lies in a buffer of the process that puts or reads it."""
CONNECT_SECONDS = 5.0
"""For which its master may not answer; Mooncake itself would wait for a minute."""
FILLED = 0.9
"""Share of its memory that a process fills: behind that Mooncake begins to forget."""
_ROOT = re.compile(r"(mooncake(?:\+rdma)?)://([^/\s:]+|\[[^]\s]+\]):(\d+)((?:/[^/\s]+)*)/?")


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
        self._host, self._port = host.strip("[]"), int(port)
        self._lock, self._client = threading.Lock(), None
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
        """Put the bytes of a file; the file stays.

        Raises:
            FullDiskError: nobody has read what was put before.
            StoreError: Mooncake does not take it.
        """
        size, most, client = path.stat().st_size, min(LARGEST, self._most), self._connected()
        if size > most:
            raise StoreError(
                f"{self.uri(key)} would take {size} bytes, more than the {most} of one object here; lower "
                "cache.max_length, give more room (DEEPSPEC_STAGING_GB), or take a store on disks"
            )
        self._make_room(size, key)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            code = client.put(self._name(key), data)
        if code == FULL:
            raise FullDiskError(f"no room for {self.uri(key)}: the memory of this machine is full of states")
        if code != 0:
            raise StoreError(f"cannot put {self.uri(key)}: Mooncake returned {code}")
        with self._lock:
            self._put[key] = StoreEntry(size=size, modified=time.time())

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a key.

        Raises:
            StoreError: it is not there, or could not be read.
        """
        size = self.size(key)
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
        return {key: put[key] for key in put if key not in gone and key.startswith(f"{prefix}/")}

    @property
    def _most(self) -> int:
        return int(FILLED * self._room)

    def _name(self, key: str) -> str:
        """Return a key as Mooncake has it: its prefix is part of it, whichever part of the URL that stands in."""
        return f"{self._prefix}/{key}".lstrip("/")

    def _make_room(self, size: int, key: str) -> None:
        """Look which states were read meanwhile, where these would not fit beside all that were put."""
        if sum(each.size for each in self._put.copy().values()) + size <= self._most:
            return
        taken = sum(each.size for each in self.entries(key.rpartition("/")[0]).values())
        if taken + size > self._most:
            raise FullDiskError(
                f"no room for {self.uri(key)}: {taken} bytes of states that nobody has read yet, of at most "
                f"{self._most}; give the carrier more (DEEPSPEC_STAGING_GB), or the run less"
            )

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
        code = client.setup(own, "P2PHANDSHAKE", self._room, LARGEST, self._transport, "", master)
        if code != 0:
            raise StoreError(f"Mooncake at {self.root} does not begin: it returned {code}; see what its master says")
        return client
