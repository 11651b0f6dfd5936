"""One root for everything that is published: a local folder or `s3://bucket/prefix`.

A key is a relative path with forward slashes. Three operations carry the whole design: `put_file` for data
(never renamed afterwards), `create` for commit marks (exclusive and durable), and `list`. Here errors are named;
`local.py` and `objects.py` do the work.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepspec.disk import is_full
from deepspec.errors import FullDiskError, NotPublishedError, RefusedError, SpecError, StoreError
from deepspec.store.entries import StoreEntry, Upload
from deepspec.store.local import LocalFolder, beside
from deepspec.store.objects import ObjectStorage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")


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
        self._kept: LocalFolder | ObjectStorage
        if "://" in text:
            self.root = text.rstrip("/")
            self._kept = ObjectStorage(self.root)
        else:
            self._kept = LocalFolder(Path(text).expanduser().resolve())
            self.root = str(self._kept.root)

    def __repr__(self) -> str:
        """Show the root."""
        return f"Store({self.root!r})"

    @property
    def local(self) -> bool:
        """Return whether the root is a folder of this machine."""
        return isinstance(self._kept, LocalFolder)

    def uri(self, key: str) -> str:
        """Return where a key lies, to show to people."""
        return f"{self.root}/{key}"

    def read_bytes(self, key: str) -> bytes:
        """Return the bytes of a key.

        Raises:
            NotPublishedError: no such key.
        """
        with self._reading(key):
            return self._kept.read(key)

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write a small key, replacing what was there in one step."""
        with self._writing(key):
            self._kept.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small key unless it exists; return whether this call wrote it.

        Locally exactly one of many racing callers wins. On S3 the server decides where it knows conditional
        writes; a server that does not lets the last one win, which is harmless for marks whose data is valid.
        """
        with self._writing(key):
            return self._kept.create(key, data)

    def put_file(self, path: Path, key: str) -> None:
        """Publish the bytes of a local file under a key (locally by a move: nothing is copied within a file system)."""
        with self._writing(key):
            self._kept.put(path, key)

    def get_file(self, key: str, path: Path) -> None:
        """Copy a key to a local file."""
        with self._reading(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside(path, "{name}.{lot}") as temporary:  # those who share a folder know by it what is coming
                self._kept.get(key, temporary)
                temporary.replace(path)

    def exists(self, key: str) -> bool:
        """Return whether a key is there."""
        with self._reading(key):
            return self._kept.exists(key)

    def size(self, key: str) -> int:
        """Return the size of a key in bytes."""
        with self._reading(key):
            return self._kept.size(key)

    def list(self, prefix: str) -> list[str]:
        """Return the keys below a folder key, sorted."""
        return sorted(self.entries(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the keys below a folder key with their sizes in bytes."""
        return {key: found.size for key, found in self.entries(prefix).items()}

    def entries(self, prefix: str) -> dict[str, StoreEntry]:
        """Return the keys below a folder key with their sizes and times."""
        with self._reading(prefix):
            return self._kept.entries(prefix)

    def delete(self, key: str) -> None:
        """Remove a key; a key that is not there is no error."""
        with self._writing(key), suppress(FileNotFoundError):
            self._kept.delete(key)

    def unfinished_uploads(self) -> tuple[Upload, ...]:
        """Return the multipart uploads below the root that were begun and neither finished nor given up."""
        if isinstance(self._kept, LocalFolder):
            return ()
        with self._reading(""):
            return self._kept.uploads()

    def begin_upload(self, key: str) -> Upload:
        """Begin an upload in parts, which has to be finished or given up; object storage alone knows any."""
        with self._writing(key):
            return self._objects().begin_upload(key)

    def abort_upload(self, upload: Upload) -> None:
        """Give an unfinished upload up; its parts are deleted."""
        with self._writing(upload.key):
            self._objects().abort_upload(upload)

    def local_path(self, key: str) -> Path | None:
        """Return the file behind a key where the store is a local folder, else None."""
        return self._kept.path(key) if isinstance(self._kept, LocalFolder) else None

    def free_bytes(self) -> int | None:
        """Return the free space for a local root; None for object storage."""
        return self._kept.free_bytes() if isinstance(self._kept, LocalFolder) else None

    def check_writable(self) -> None:
        """Write and remove one small key.

        Raises:
            StoreError: the root cannot be written to; the message says why.
        """
        key = f"probe-{secrets.token_hex(8)}"
        self.write_bytes(key, b"deepspec")
        self.delete(key)

    def _objects(self) -> ObjectStorage:
        if isinstance(self._kept, LocalFolder):
            raise StoreError(f"store {self.root} is a folder, where nothing is uploaded in parts")
        return self._kept

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotPublishedError(f"{self.uri(key)} does not exist") from error
        except self._kept.failures as error:
            refused = self._kept.refusal(error)
            kind = StoreError if refused is None else RefusedError
            raise kind(f"cannot read {self.uri(key)}: {error}; {refused or self._kept.advice}") from error

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        try:
            yield
        except self._kept.failures as error:
            refused = self._kept.refusal(error)
            kind = FullDiskError if is_full(error) else StoreError if refused is None else RefusedError
            raise kind(f"cannot write {self.uri(key)}: {error}; {refused or self._kept.advice}") from error


def _check_scheme(root: str) -> None:
    """Refuse what begins like a URL and would become a folder of that name."""
    found = _SCHEME.match(root)
    if found is None:
        return
    scheme, rest = found[1].lower(), root[found.end() :].lstrip("/")
    if scheme in ("file", "local"):
        raise SpecError(f"store {root!r}: give a local store as its folder, without {found[1]}:")
    if scheme in ("http", "https"):
        raise SpecError(f"store {root!r}: nothing can be written there; wanted a folder, or s3://bucket/prefix")
    if found[2] and root[found.end() : found.end() + 1] in ("", "/"):
        raise SpecError(f"store {root!r} names no bucket; wanted {scheme}://bucket/prefix")
    if found[0] != f"{scheme}://":
        raise SpecError(
            f"store {root!r} begins like a URL and is none; write {scheme}://{rest}, or ./{root} for a folder of "
            "that name"
        )
