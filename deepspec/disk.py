"""Files on this machine: whether they are what was published, and what is said where they cannot be written.

A full disk is named wherever it happens, with what to do.
"""

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from deepspec.errors import CorruptArtifactError, FullDiskError, StoreError

ADVICE = "free some space there; what is published or committed stays, and the same command goes on"
FULL = (errno.ENOSPC, errno.EDQUOT)
_TOLD = tuple(f"os error {number}" for number in FULL)
"""How safetensors says the same."""
_CLONE = 0x40049409
"""FICLONE of Linux: let a file have the blocks of another one until either is changed."""
_PIECE = 1 << 24
"""Bytes that are copied at once."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that the block writes where that fails.

    Raises:
        FullDiskError: there is no room left.
        StoreError: it cannot be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        kind = FullDiskError if is_full(error) else StoreError
        raise kind(f"cannot write {path}: {error}; {ADVICE}") from error


@contextmanager
def full_disk_named(*folders: Path) -> Iterator[None]:
    """Name a full disk that the block meets, wherever it writes.

    Args:
        folders: that it writes to: the message says how much room is left in each.

    Raises:
        FullDiskError: there is no room left.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        told = ", ".join(dict.fromkeys(f"{folder} ({_free(folder)} free)" for folder in folders))
        raise FullDiskError(f"cannot write to {told}: {error}; {ADVICE}") from error


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, is a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if isinstance(error, SafetensorError) and any(told in str(error) for told in _TOLD):
            return True
        error = error.__cause__
    return False


def copy_file(source: Path, destination: Path) -> None:
    """Give a file a copy that can be changed without changing it; it takes no room where the file system shares blocks.

    A link would be one file with two names: who edits a folder that was laid out for him would edit the store.
    """
    with source.open("rb") as given, destination.open("wb") as copy:
        try:
            fcntl.ioctl(copy, _CLONE, given.fileno())
        except OSError:  # another file system, or one that shares no blocks
            shutil.copyfileobj(given, copy, _PIECE)


def free_bytes(folder: Path) -> int:
    """Return the free space where a folder lies, or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _free(folder: Path) -> str:
    return f"{free_bytes(folder) / 1e6:,.1f} MB"


class FileEntry(BaseModel):
    """One published file: where its bytes are and what they must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Key below the artifact's prefix."""
    size: int
    checksum: str
    """`xxh3:` and the 128-bit hash of the bytes, in hex."""


def checksum(path: Path) -> str:
    """Return `xxh3:` and the 128-bit XXH3 hash of a file, read in chunks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"


def is_sound(path: Path, entry: FileEntry) -> bool:
    """Return whether a local file has the size and the checksum of its entry."""
    try:
        verify_file(path, entry, path.name)
    except CorruptArtifactError:
        return False
    return True


def verify_file(path: Path, entry: FileEntry, name: str) -> None:
    """Check a local file against its entry.

    Raises:
        CorruptArtifactError: it is missing, or size or checksum differ.
    """
    advice = "delete the artifact (deepspec gc --artifact) and run again to rebuild it"
    if not path.is_file():
        raise CorruptArtifactError(f"{name}: {path} is gone; {advice}")
    size = path.stat().st_size
    if size != entry.size:
        raise CorruptArtifactError(f"{name}: {path} has {size} bytes, its manifest says {entry.size}; {advice}")
    found = checksum(path)
    if found != entry.checksum:
        raise CorruptArtifactError(f"{name}: {path} has checksum {found}, its manifest says {entry.checksum}; {advice}")


def check_name(name: str, where: str) -> None:
    """Refuse file names that could leave their folder.

    Raises:
        CorruptArtifactError: the name is empty, dotted, or holds a separator.
    """
    if name in {"", ".", ".."} or any(sign in name for sign in "/\\\0"):
        raise CorruptArtifactError(f"{where} names the file {name!r}; only plain names are accepted")
