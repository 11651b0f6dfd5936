"""One root for everything that is published: a local folder or `s3://bucket/prefix`.

A key is a relative path with forward slashes. Three operations carry the whole design: `put_file` for data
(never renamed afterwards), `create` for commit marks (exclusive and durable), and `list`.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import fsspec

from deepspec.disk import free_bytes, is_full
from deepspec.errors import FullDiskError, NotPublishedError, SpecError, StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreEntry:
    """What lies under a key."""

    size: int
    modified: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A multipart upload that was never finished: storage that costs, and that no list of keys shows."""

    key: str
    """In the bucket."""
    id: str
    started: float
    """Seconds since 1970."""


class Store:
    """Bytes by key under one root.

    Args:
        root: a local folder (created when first written) or an `s3://bucket/prefix` URL. Credentials for S3 come
            from where s3fs looks for them (environment, shared files), never through here.

    Raises:
        SpecError: the root begins like a URL and is none.
    """

    def __init__(self, root: str | Path) -> None:
        """Name the root; nothing is touched yet."""
        text = str(root)
        _check_scheme(text)
        self.local = "://" not in text
        self.root = str(Path(text).expanduser().resolve()) if self.local else text.rstrip("/")
        self._fs: Any = None

    def __repr__(self) -> str:
        """Show the root."""
        return f"Store({self.root!r})"

    def uri(self, key: str) -> str:
        """Return where a key lies, to show to people."""
        return f"{self.root}/{key}"

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a key.

        Raises:
            NotPublishedError: no such key.
        """
        with self._reading(key):
            return self._path(key).read_bytes() if self.local else bytes(self._remote.cat_file(self.uri(key)))

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write a small key, replacing what was there in one step."""
        with self._writing(key):
            if not self.local:
                self._remote.pipe_file(self.uri(key), data)
                return
            path = self._path(key)
            with _beside(path) as temporary:
                _write_durably(temporary, data)
                temporary.replace(path)
            _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small key unless it exists; return whether this call wrote it.

        Locally exactly one of many racing callers wins. On S3 the server decides where it knows conditional
        writes; a server that does not lets the last one win, which is harmless for marks whose data is valid.
        """
        with self._writing(key):
            return self._create_local(key, data) if self.local else self._create_remote(key, data)

    def put_file(self, path: Path, key: str) -> None:
        """Publish the bytes of a local file under a key (locally by link or move: nothing is copied twice)."""
        with self._writing(key):
            if not self.local:
                self._upload(path, key)
                return
            destination = self._path(key)
            _sync_file(path)
            if path.resolve() != destination:
                self._move(path, destination)
            _sync_folder(destination.parent)

    def get_file(self, key: str, path: Path) -> None:
        """Copy a key to a local file."""
        with self._reading(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _beside(path, "{name}.{lot}") as temporary:  # those who share a folder know by it what is coming
                if self.local:
                    shutil.copyfile(self._path(key), temporary)
                else:
                    self._remote.get_file(self.uri(key), str(temporary))
                temporary.replace(path)

    def exists(self, key: str) -> bool:
        """Return whether a key is there."""
        with self._reading(key):
            if self.local:
                return self._path(key).is_file()
            self._remote.invalidate_cache()
            return bool(self._remote.exists(self.uri(key)))

    def size(self, key: str) -> int:
        """Return the size of a key in bytes."""
        with self._reading(key):
            if self.local:
                return self._path(key).stat().st_size
            self._remote.invalidate_cache()
            return int(self._remote.size(self.uri(key)))

    def list(self, prefix: str) -> list[str]:
        """Return the keys below a folder key, sorted."""
        return sorted(self.entries(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the keys below a folder key with their sizes in bytes."""
        return {key: found.size for key, found in self.entries(prefix).items()}

    def entries(self, prefix: str) -> dict[str, StoreEntry]:
        """Return the keys below a folder key with their sizes and times."""
        with self._reading(prefix):
            return self._local_entries(prefix) if self.local else self._remote_entries(prefix)

    def unfinished_uploads(self) -> tuple[Upload, ...]:
        """Return the multipart uploads below the root that were begun and neither finished nor given up."""
        if self.local:
            return ()
        with self._reading(""):
            bucket, prefix = self._bucket()
            found = self._remote.list_multipart_uploads(bucket)
        return tuple(
            Upload(key=item["Key"], id=item["UploadId"], started=item["Initiated"].timestamp())
            for item in found
            if item["Key"].startswith(prefix)
        )

    def begin_upload(self, key: str) -> Upload:
        """Begin an upload in parts, which has to be finished or given up; object storage alone knows any."""
        with self._writing(key):
            bucket, prefix = self._bucket()
            call = {"Bucket": bucket, "Key": f"{prefix}{key}"}
            found = self._remote.call_s3("create_multipart_upload", **call)
        return Upload(key=call["Key"], id=found["UploadId"], started=time.time())

    def abort_upload(self, upload: Upload) -> None:
        """Give an unfinished upload up; its parts are deleted."""
        with self._writing(upload.key):
            call = {"Bucket": self._bucket()[0], "Key": upload.key, "UploadId": upload.id}
            self._remote.call_s3("abort_multipart_upload", **call)

    def delete(self, key: str) -> None:
        """Remove a key; a key that is not there is no error."""
        with self._writing(key), suppress(FileNotFoundError):
            if self.local:
                self._path(key).unlink()
            else:
                self._remote.rm_file(self.uri(key))

    def local_path(self, key: str) -> Path | None:
        """Return the file behind a key where the store is a local folder, else None."""
        return self._path(key) if self.local else None

    def free_bytes(self) -> int | None:
        """Return the free space for a local root; None for object storage."""
        if not self.local:
            return None
        return free_bytes(Path(self.root))

    def check_writable(self) -> None:
        """Write and remove one small key.

        Raises:
            StoreError: the root cannot be written to; the message says why.
        """
        key = f"probe-{secrets.token_hex(8)}"
        self.write_bytes(key, b"deepspec")
        self.delete(key)

    def _upload(self, path: Path, key: str) -> None:
        """Put a file; a busy server may end an upload, answer too late, and not know it when it is asked again."""
        try:
            self._remote.put_file(str(path), self.uri(key))
        except OSError:
            with suppress(NotPublishedError):
                if self.size(key) == path.stat().st_size:
                    return
            raise

    def _local_entries(self, prefix: str) -> dict[str, StoreEntry]:
        found: dict[str, StoreEntry] = {}
        for path in self._path(prefix).rglob("*"):
            with suppress(FileNotFoundError):  # gone since it was listed
                stat = path.stat()
                if S_ISREG(stat.st_mode):
                    key = path.relative_to(self.root).as_posix()
                    found[key] = StoreEntry(size=stat.st_size, modified=stat.st_mtime)
        return found

    def _remote_entries(self, prefix: str) -> dict[str, StoreEntry]:
        self._remote.invalidate_cache()
        try:
            found = self._remote.find(self.uri(prefix), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self.root.split("://", 1)[1]) + 1
        return {
            str(name)[start:]: StoreEntry(size=int(info["size"]), modified=info["LastModified"].timestamp())
            for name, info in found.items()
            if info["type"] == "file"  # a folder whose first key came while it was listed is found as a folder
        }

    def _bucket(self) -> tuple[str, str]:
        """Return the bucket, and how keys below the root begin in it."""
        bucket, _, prefix = self.root.split("://", 1)[1].partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    @property
    def _remote(self) -> Any:
        if self._fs is None:
            scheme = self.root.split("://", 1)[0]
            try:
                self._fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                raise SpecError(
                    f"store {self.root}: {error}; for S3 install the extra: pip install 'deepspec[s3]'"
                ) from error
        return self._fs

    def _path(self, key: str) -> Path:
        if ".." in key.split("/") or key.startswith("/"):
            raise StoreError(f"store key {key!r} leaves the root; keys are relative paths without '..'")
        return Path(self.root, key)

    def _move(self, path: Path, destination: Path) -> None:
        try:
            path.replace(destination)
        except OSError:  # another file system
            with _beside(destination) as temporary:
                shutil.copyfile(path, temporary)
                _sync_file(temporary)
                temporary.replace(destination)

    def _create_local(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _beside(path) as temporary:
            _write_durably(temporary, data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _sync_folder(path.parent)
        return True

    def _create_remote(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        try:
            self._remote.pipe_file(self.uri(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError:  # servers that answer a lost race with another error than "exists"
            if self.exists(key):
                return False
            raise
        return True

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotPublishedError(f"{self.uri(key)} does not exist") from error
        except _failures() as error:
            raise StoreError(f"cannot read {self.uri(key)}: {error}; {self._advice()}") from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            if self.local:
                self._path(key).parent.mkdir(parents=True, exist_ok=True)
            yield
        except _failures() as error:
            kind = FullDiskError if is_full(error) else StoreError
            raise kind(f"cannot write {self.uri(key)}: {error}; {self._advice()}") from error

    def _advice(self) -> str:
        """Return what helps where the root refuses, or is not there."""
        if self.local:
            return "check that the root exists, is writable and has space"
        return (
            f"the store {self.root} refuses, or cannot be reached: AWS_ENDPOINT_URL says where its server is, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) who asks; deepspec doctor tries each operation"
        )


def _check_scheme(root: str) -> None:
    """Refuse what begins like a URL and would become a folder of that name."""
    found = _SCHEME.match(root)
    if found is None:
        return
    scheme, rest = found[1].lower(), root[found.end() :].lstrip("/")
    if scheme in ("file", "local"):
        raise SpecError(f"store {root!r}: give a local store as its folder, without {found[1]}:")
    if found[2] and root[found.end() : found.end() + 1] in ("", "/"):
        raise SpecError(f"store {root!r} names no bucket; wanted {scheme}://bucket/prefix")
    if found[0] != f"{scheme}://":
        raise SpecError(
            f"store {root!r} begins like a URL and is none; write {scheme}://{rest}, or ./{root} for a folder of "
            "that name"
        )


def _failures() -> tuple[type[Exception], ...]:
    """Return what a store can raise: OSError, and the errors of the S3 client where one is installed."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError, ClientError)


@contextmanager
def _beside(path: Path, form: str = ".{name}.{lot}.tmp") -> Iterator[Path]:
    """Yield a name beside a file for what is to take its place; a write that fails leaves nothing there."""
    temporary = path.with_name(form.format(name=path.name, lot=secrets.token_hex(4)))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


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
