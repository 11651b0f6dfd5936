"""Where a carrier puts states and a run finds them: a store, or the memory of the engine's machine."""

import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from deepspec.depots.mooncake import SCHEMES, MooncakeMemory
from deepspec.store import Store
from deepspec.store.entries import StoreEntry

_OPENING = threading.Lock()


class Depot(Protocol):
    """What a carrier and a run need of it; methods and errors are those of `Store`."""

    root: str

    def uri(self, key: str) -> str:
        """Return where a key lies."""

    def check_writable(self) -> None:
        """Return if something could be put."""

    def put_file(self, path: Path, key: str) -> None:
        """Put the bytes of a file."""

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a key."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy a key to a file."""

    def size(self, key: str) -> int:
        """Return the bytes of a key."""

    def delete(self, key: str) -> None:
        """Remove a key."""

    def entries(self, prefix: str) -> Mapping[str, StoreEntry]:
        """Return the keys below a prefix that it knows of."""


def depot_at(root: str, room: int = 0) -> Depot:
    """Return what a URL or a folder names.

    Args:
        root: as of a `Store`, or `mooncake://HOST:PORT`.
        room: bytes of this machine's memory for what is put, where it lies in memory.

    Raises:
        SpecError: it names nothing, or its package is not installed.
    """
    return MooncakeMemory(root, room) if root.partition("://")[0] in SCHEMES else Store(root)


def opened_depot(root: str) -> Depot:
    """Return one to read from, whose connections stay for the next sample: the same for all threads."""
    with _OPENING:
        return _opened(root)


@lru_cache(8)
def _opened(root: str) -> Depot:
    return depot_at(root)
