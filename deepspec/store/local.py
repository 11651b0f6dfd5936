"""A store in a local folder: whole files that appear in one step and outlive a loss of power."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from deepspec.disk import free_bytes
from deepspec.errors import StoreError
from deepspec.store.entries import StoreEntry

ADVICE = "check that the root exists, is writable and has space"


class LocalFolder:
    """Files by key below a folder.

    Args:
        root: the folder, which is created when first written.
    """

    def __init__(self, root: Path) -> None:
        """Name the folder; nothing is touched yet."""
        self.root = root
        self.advice = ADVICE
        self.failures: tuple[type[Exception], ...] = (OSError,)

    def refusal(self, error: Exception) -> str | None:
        """Return what has to be mended before the same can succeed; None: it may pass."""
        refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return self.advice if refused else None

    def path(self, key: str) -> Path:
        """Return where a key lies.

        Raises:
            StoreError: it leaves the root.
        """
        if ".." in key.split("/") or key.startswith("/"):
            raise StoreError(f"store key {key!r} leaves the root; keys are relative paths without '..'")
        return self.root / key

    def read(self, key: str) -> bytes:
        """Return the bytes of a key."""
        return self.path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write a small key, replacing what was there in one step."""
        path = self._place(key)
        with beside(path) as temporary:
            _write_durably(temporary, data)
            temporary.replace(path)
        _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small key unless it exists; return whether this call wrote it: exactly one of many does."""
        path = self._place(key)
        with beside(path) as temporary:
            _write_durably(temporary, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_folder(path.parent)
        return True

    def put(self, path: Path, key: str) -> None:
        """Take a file over, by a move: nothing is copied within a file system."""
        destination = self._place(key)
        _sync_file(path)
        if path.resolve() != destination:
            _move(path, destination)
        _sync_folder(destination.parent)

    def get(self, key: str, path: Path) -> None:
        """Copy a key to a file."""
        shutil.copyfile(self.path(key), path)

    def exists(self, key: str) -> bool:
        """Return whether a key is there."""
        return self.path(key).is_file()

    def size(self, key: str) -> int:
        """Return the size of a key in bytes."""
        return self.path(key).stat().st_size

    def entries(self, prefix: str) -> dict[str, StoreEntry]:
        """Return the keys below a folder key with their sizes and times."""
        found: dict[str, StoreEntry] = {}
        for path in self.path(prefix).rglob("*"):
            with suppress(FileNotFoundError):  # gone since it was listed
                stat = path.stat()
                if S_ISREG(stat.st_mode):
                    key = path.relative_to(self.root).as_posix()
                    found[key] = StoreEntry(size=stat.st_size, modified=stat.st_mtime)
        return found

    def delete(self, key: str) -> None:
        """Remove a key, which must be there."""
        self.path(key).unlink()

    def free_bytes(self) -> int:
        """Return the free space where the folder lies."""
        return free_bytes(self.root)

    def _place(self, key: str) -> Path:
        """Return where a key lies, once its folder is there."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def beside(path: Path, form: str = ".{name}.{lot}.tmp") -> Iterator[Path]:
    """Yield a name beside a file for what is to take its place; a write that fails leaves nothing there."""
    temporary = path.with_name(form.format(name=path.name, lot=secrets.token_hex(4)))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move(path: Path, destination: Path) -> None:
    try:
        path.replace(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:  # another file system
            raise
        with beside(destination) as temporary:
            shutil.copyfile(path, temporary)
            _sync_file(temporary)
            temporary.replace(destination)
        path.unlink()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
