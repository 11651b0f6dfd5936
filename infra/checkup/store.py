"""A store, by trying each operation that runs need under a key of its own, which is deleted again."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deepspec.errors import StoreError
from deepspec.plan.cost.table import size
from deepspec.plan.rules.seen import Seen
from deepspec.store import Store

PROBE = b"deepspec"
APART_SECONDS = 60.0
"""A clock that is further off makes claims of workers expire, and what `gc` finds old be new; S3 refuses at 900."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One row of the table."""

    attempt: Callable[[Store, str], None]
    """Tries it below a folder key."""
    permission: str
    """What an S3 server must allow."""


def _write(store: Store, folder: str) -> None:
    store.write_bytes(f"{folder}/data", PROBE)


def _read(store: Store, folder: str) -> None:
    if store.read_bytes(f"{folder}/data") != PROBE:
        raise StoreError(f"{store.uri(folder)}/data holds other bytes than were written")


def _list(store: Store, folder: str) -> None:
    if store.list(folder) != [f"{folder}/data"]:
        raise StoreError(f"{store.uri(folder)} does not list what was written into it")


def _mark(store: Store, folder: str) -> None:
    if not store.create(f"{folder}/mark", PROBE) or store.create(f"{folder}/mark", PROBE):
        raise StoreError(f"{store.uri(folder)}/mark: a mark was written over one that is there")


def _upload(store: Store, folder: str) -> None:
    if not store.local:
        store.abort_upload(store.begin_upload(f"{folder}/parts"))


def _uploads(store: Store, folder: str) -> None:
    del folder
    store.unfinished_uploads()


def _delete(store: Store, folder: str) -> None:
    for name in ("data", "mark"):
        store.delete(f"{folder}/{name}")


OPERATIONS: Mapping[str, Operation] = {
    "write": Operation(attempt=_write, permission="s3:PutObject"),
    "read": Operation(attempt=_read, permission="s3:GetObject"),
    "list": Operation(attempt=_list, permission="s3:ListBucket"),
    "write once": Operation(attempt=_mark, permission="s3:PutObject, s3:GetObject, s3:ListBucket"),
    "upload in parts": Operation(attempt=_upload, permission="s3:PutObject, s3:AbortMultipartUpload"),
    "list uploads": Operation(attempt=_uploads, permission="s3:ListBucketMultipartUploads"),
    "delete": Operation(attempt=_delete, permission="s3:DeleteObject"),
}
"""Name -> operation, in the order in which they are tried."""


def operations(store: Store) -> Seen:
    """Try every operation; tell the free space, and a clock that is off.

    Raises:
        StoreError: some are refused; names each with what it needs.
    """
    folder = f"probe-{secrets.token_hex(8)}"
    _write(store, folder)  # what cannot be written can be tried no further
    apart = seconds_apart(store, folder)
    refused = [told for name, operation in OPERATIONS.items() if (told := _refusal(store, folder, name, operation))]
    if refused:
        advice = (
            "" if store.local else "; give the key these permissions: infra/s3/policy.json (deepspec files) has all"
        )
        raise StoreError(f"{store.root} refuses to {'; to '.join(refused)}{advice}")
    free = store.free_bytes()
    detail = f"{store.root}: {', '.join(OPERATIONS)}; {'no limit known' if free is None else size(free)} free"
    return Seen(detail, clock_told(apart))


def seconds_apart(store: Store, folder: str) -> float:
    """Return how far the store's clock is from this machine's, by the time of a key that was just written."""
    try:
        return store.entries(folder)[f"{folder}/data"].modified - time.time()
    except (StoreError, KeyError):  # `list` says so
        return 0.0


def clock_told(apart: float) -> tuple[str, ...]:
    """Return what should be told of clocks that are so many seconds apart."""
    if abs(apart) < APART_SECONDS:
        return ()
    return (
        f"its clock and this machine's are {abs(apart):,.0f} s apart: workers would take each other for dead, and S3 "
        "refuses requests from 900 s on; set it by NTP (timedatectl set-ntp true)",
    )


def _refusal(store: Store, folder: str, name: str, operation: Operation) -> str:
    try:
        operation.attempt(store, folder)
    except StoreError as error:
        return f"{name} (needs {operation.permission}): {error}"
    return ""
