"""Two runs of one store at the same stage, on two machines: the second waits for as long as the first shows life.

Nothing but time rests on it: artifacts are whole or not there, whoever makes them. Clocks of two machines differ, so
none is compared: a holder writes something new every few seconds, and who waits looks whether that changes.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from deepspec.errors import NotPublishedError, StoreError
from deepspec.store import Store

BEAT_SECONDS = 10.0
"""How often a holder shows life."""
DEAD_SECONDS = 60.0
"""After which a holder that showed none is taken for dead."""
LOOK_SECONDS = 5.0
"""How often a run that waits looks."""


class Holder(BaseModel):
    """Who makes something, as a small key of the store says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    host: str
    pid: int
    beats: int = 0
    """How often life was shown."""

    def is_gone(self) -> bool:
        """Return whether its process was one of this machine, and has ended."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


class Lease:
    """A key of a store that one run at a time holds, best effort.

    Args:
        store: that runs share.
        key: says what is made.
        clock: seconds.
    """

    def __init__(self, store: Store, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Hold nothing yet."""
        self._store, self._key, self._clock = store, key, clock
        self._me = Holder(owner=secrets.token_hex(8), host=socket.gethostname(), pid=os.getpid())
        self.seen: Holder | None = None
        """Who held it when it could not be taken."""
        self._since = 0.0

    def take(self) -> bool:
        """Return whether it is held from now on: nobody had it, or whoever did shows no life."""
        told = self._me.model_dump_json().encode()
        if self._store.create(self._key, told):
            return True
        if self._lives(self._holder()):
            return False
        self._store.write_bytes(self._key, told)
        return self._is_held()

    def beat(self) -> bool:
        """Show life; return whether it is still held: who was taken for dead leaves it to the other one."""
        if not self._is_held():
            return False
        self._me = self._me.model_copy(update={"beats": self._me.beats + 1})
        self._store.write_bytes(self._key, self._me.model_dump_json().encode())
        return True

    def drop(self) -> None:
        """Give it back, where it is held."""
        if self._is_held():
            self._store.delete(self._key)

    def _lives(self, holder: Holder | None) -> bool:
        if holder != self.seen:
            self.seen, self._since = holder, self._clock()
        return holder is not None and not holder.is_gone() and self._clock() - self._since < DEAD_SECONDS

    def _is_held(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.owner == self._me.owner

    def _holder(self) -> Holder | None:
        """Return who holds it; None: nobody, or nobody who can be read."""
        try:
            return Holder.model_validate_json(self._store.read_bytes(self._key))
        except (NotPublishedError, ValidationError):
            return None


@contextmanager
def leased(store: Store, key: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a key of a store for as long as the block runs, once nobody else does; without it where the store fails.

    Args:
        store: that runs share.
        key: says what is made.
        waiting: told on which host it is made, before each wait; what it raises ends the waiting.
    """
    lease, ended = Lease(store, key), Event()
    with suppress(StoreError):  # what is made next says so
        while not lease.take():
            waiting("another host" if lease.seen is None else lease.seen.host)
            time.sleep(LOOK_SECONDS)
    beating = Thread(target=_beat, args=(lease, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(StoreError):
            lease.drop()


def _beat(lease: Lease, ended: Event) -> None:
    held = True
    while held and not ended.wait(BEAT_SECONDS):
        with suppress(StoreError):  # tried again
            held = lease.beat()
