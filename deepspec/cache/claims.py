"""Who works on which shard: best effort, so that workers rarely do the same; correctness rests on commits alone."""

import json
import os
import socket
import time
from typing import Any

from deepspec.errors import NotPublishedError
from deepspec.publish import Out

EXPIRY = 1800.0
"""Seconds without a sign of life after which the claim of a worker on another host is void."""


class Claims:
    """Claims on the shards of one artifact, as small keys beside its parts.

    A claim is void once its shard is committed, when its process is gone (same host), or when it shows no life (other
    hosts). So a run that was killed is gone on with at once.

    Args:
        out: of this worker.
    """

    def __init__(self, out: Out) -> None:
        """Claim nothing yet."""
        self._store, self._folder = out.store, f"{out.prefix}/claims/{out.scratch.name}"
        self._me = {"attempt": out.attempt, "host": socket.gethostname(), "pid": os.getpid()}

    def take(self, shard: int) -> bool:
        """Return whether this worker has the shard, now or from before."""
        key = self._key(shard)
        if self._store.create(key, self._told()):
            return True
        holder = self._holder(key)
        if holder is not None and holder["attempt"] != self._me["attempt"] and _lives(holder):
            return False
        self._store.write_bytes(key, self._told())
        return True

    def renew(self, shard: int) -> None:
        """Show life."""
        self._store.write_bytes(self._key(shard), self._told())

    def drop(self, shard: int) -> None:
        """Give a shard back, or note that it is done: its commit marks say so."""
        self._store.delete(self._key(shard))

    def _key(self, shard: int) -> str:
        return f"{self._folder}/shard-{shard:05d}.json"

    def _told(self) -> bytes:
        return json.dumps({**self._me, "time": time.time()}).encode()

    def _holder(self, key: str) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self._store.read_bytes(key))
        except (NotPublishedError, ValueError):
            return None
        return holder


def _lives(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["time"] < EXPIRY)
    if holder["pid"] == os.getpid():
        return False  # an earlier attempt of this very process
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
