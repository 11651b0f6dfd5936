"""A store in object storage, through fsspec: s3://bucket/prefix."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from deepspec.errors import SpecError
from deepspec.store.entries import StoreEntry, Upload

_REFUSALS: Mapping[str, str] = {
    "403": "the key has no permission for this in bucket {bucket}, or is none that the server knows: mend either",
    "AccessDenied": "the key has no permission for this in bucket {bucket}: give it what infra/s3/policy.json lists",
    "ExpiredToken": "the session has ended: renew AWS_SESSION_TOKEN, and the keys that belong to it",
    "InvalidAccessKeyId": "the server does not know the key: mend AWS_ACCESS_KEY_ID, or AWS_ENDPOINT_URL",
    "InvalidBucketName": "{bucket} is no name of a bucket: mend the root",
    "InvalidToken": "the server does not take the session: mend AWS_SESSION_TOKEN",
    "NoSuchBucket": "there is no bucket {bucket}: make it, or mend the root or AWS_ENDPOINT_URL",
    "RequestTimeTooSkewed": "this machine's clock is off: set it by NTP (timedatectl set-ntp true)",
    "SignatureDoesNotMatch": "the secret is not this key's: mend AWS_SECRET_ACCESS_KEY",
}
"""Code of an S3 server -> why the same request will be refused again, and what to do."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""Errors of S3's client, which need not be installed."""


class ObjectStorage:
    """Objects by key below a URL.

    Args:
        root: `s3://bucket/prefix`, without a slash behind it.
    """

    def __init__(self, root: str) -> None:
        """Name the root; nothing is asked yet."""
        self.root = root
        self.advice = (
            f"the store {root} refuses, or cannot be reached: AWS_ENDPOINT_URL says where its server is, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) who asks; deepspec doctor tries each operation"
        )
        self._scheme, _, rest = root.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._known: Any = None

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """Return what the client can raise: OSError, and the errors of S3's own where one is installed."""
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            return (OSError,)
        return (OSError, BotoCoreError, ClientError)

    def refusal(self, error: Exception) -> str | None:
        """Return what has to be mended before the same can succeed; None: it may pass."""
        code = _code(error)
        if code in _REFUSALS:
            return _REFUSALS[code].format(bucket=self._bucket)
        if type(error).__name__ in _NO_CREDENTIALS:
            return self.advice
        if isinstance(error, FileNotFoundError):
            return _REFUSALS["NoSuchBucket"].format(bucket=self._bucket)
        return _REFUSALS["403"].format(bucket=self._bucket) if isinstance(error, PermissionError) else None

    @property
    def client(self) -> Any:
        """Return the client, which is made when it is first asked.

        Raises:
            SpecError: there is none for such a URL.
        """
        if self._known is None:
            try:
                self._known = fsspec.filesystem(self._scheme, use_listings_cache=False, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                raise SpecError(
                    f"store {self.root}: {error}; for S3 install the extra: pip install 'deepspec[s3]'"
                ) from error
        return self._known

    def read(self, key: str) -> bytes:
        """Return the bytes of a key."""
        return bytes(self.client.cat_file(self._uri(key)))

    def write(self, key: str, data: bytes) -> None:
        """Write a small key, replacing what was there in one step."""
        self.client.pipe_file(self._uri(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small key unless it exists; return whether this call wrote it, as far as the server can tell."""
        if self.exists(key):
            return False
        try:
            self.client.pipe_file(self._uri(key), data, mode="create")
        except FileExistsError:
            return False
        except OSError:  # servers that answer a lost race with another error than "exists"
            if self.exists(key):
                return False
            raise
        return True

    def put(self, path: Path, key: str) -> None:
        """Upload a file; a busy server may end an upload, answer too late, and not know it when it is asked again."""
        try:
            self.client.put_file(str(path), self._uri(key))
        except OSError:
            with suppress(FileNotFoundError):
                if self.size(key) == path.stat().st_size:
                    return
            raise

    def get(self, key: str, path: Path) -> None:
        """Download a key to a file."""
        self.client.get_file(self._uri(key), str(path))

    def exists(self, key: str) -> bool:
        """Return whether a key is there."""
        self.client.invalidate_cache()
        return bool(self.client.exists(self._uri(key)))

    def size(self, key: str) -> int:
        """Return the size of a key in bytes."""
        self.client.invalidate_cache()
        return int(self.client.size(self._uri(key)))

    def entries(self, prefix: str) -> dict[str, StoreEntry]:
        """Return the keys below a folder key with their sizes and times."""
        self.client.invalidate_cache()
        try:
            found = self.client.find(self._uri(prefix), detail=True)
        except FileNotFoundError:
            return {}
        start = len(f"{self._bucket}/{self._prefix}")
        return {
            str(name)[start:]: StoreEntry(size=int(info["size"]), modified=info["LastModified"].timestamp())
            for name, info in found.items()
            if info["type"] == "file"  # a folder whose first key came while it was listed is found as a folder
        }

    def delete(self, key: str) -> None:
        """Remove a key."""
        self.client.rm_file(self._uri(key))

    def uploads(self) -> tuple[Upload, ...]:
        """Return the multipart uploads below the root that were begun and neither finished nor given up."""
        return tuple(
            Upload(key=item["Key"], id=item["UploadId"], started=item["Initiated"].timestamp())
            for item in self.client.list_multipart_uploads(self._bucket)
            if item["Key"].startswith(self._prefix)
        )

    def begin_upload(self, key: str) -> Upload:
        """Begin an upload in parts."""
        call = {"Bucket": self._bucket, "Key": f"{self._prefix}{key}"}
        found = self.client.call_s3("create_multipart_upload", **call)
        return Upload(key=call["Key"], id=found["UploadId"], started=time.time())

    def abort_upload(self, upload: Upload) -> None:
        """Give an unfinished upload up; its parts are deleted."""
        call = {"Bucket": self._bucket, "Key": upload.key, "UploadId": upload.id}
        self.client.call_s3("abort_multipart_upload", **call)

    def _uri(self, key: str) -> str:
        return f"{self.root}/{key}"


def _code(error: BaseException | None) -> str:
    """Return the code by which an S3 server names an error, or what it came from; empty: none does."""
    while error is not None:
        told = getattr(error, "response", None)
        if isinstance(told, Mapping) and isinstance(told.get("Error"), Mapping):
            return str(told["Error"].get("Code", ""))
        error = error.__cause__
    return ""
