"""A stand-in for Mooncake's client in one process, with what it returns, and a master that is only a port."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest

from deepspec.depots import mooncake

MISSING, FULL, CROWDED = -704, -200, -600


class Cluster:
    """What all clients of one master share."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.room = 0
        self.buffer, self.passing, self.turn = 1 << 30, 0, threading.Lock()
        """Bytes that may pass at a time, that do, and who counts them."""
        self.broken: dict[str, int] = {}
        """Name of a call -> what it returns in place of doing anything."""


class StandIn:
    """A client, with the calls that are made of it."""

    cluster = Cluster()

    def setup(self, own: str, metadata: str, segment: int, buffer: int, protocol: str, devices: str, at: str) -> int:
        del own, buffer, devices, at
        assert (metadata, protocol) == ("P2PHANDSHAKE", "tcp")
        self.cluster.room += segment
        return self.cluster.broken.get("setup", 0)

    @contextmanager
    def passes(self, size: int) -> Iterator[bool]:
        """Yield whether so many bytes may pass beside those that do."""
        with self.cluster.turn:
            self.cluster.passing += size
            may = self.cluster.passing <= self.cluster.buffer
        time.sleep(0.01)
        yield may
        with self.cluster.turn:
            self.cluster.passing -= size

    def get_hostname(self) -> str:
        return "here"

    def put(self, key: str, data: bytes, config: SimpleNamespace) -> int:
        assert (config.preferred_segment, config.with_hard_pin) == ("here", True)
        with self.passes(len(data)) as may:
            if "put" in self.cluster.broken or not may:
                return self.cluster.broken.get("put", CROWDED)
        if sum(map(len, self.cluster.objects.values())) + len(data) > self.cluster.room:
            return FULL
        self.cluster.objects.setdefault(key, bytes(data))
        return 0

    def get_size(self, key: str) -> int:
        return len(self.cluster.objects[key]) if key in self.cluster.objects else MISSING

    def get(self, key: str) -> bytes:
        data = self.cluster.objects.get(key, b"")
        with self.passes(len(data)) as may:
            return data[: self.cluster.broken.get("get")] if may else b""

    def remove(self, key: str, force: bool) -> int:
        assert force
        return MISSING if self.cluster.objects.pop(key, None) is None else self.cluster.broken.get("remove", 0)

    def is_exist(self, key: str) -> int:
        return int(key in self.cluster.objects)


@contextmanager
def listening() -> Iterator[str]:
    """Yield the URL of something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with server.accept()[0]:
                    pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        yield f"mooncake://127.0.0.1:{port}"
        ended.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Cluster]]:
    """Yield the URL of a master whose clients are stand-ins, and what these share."""
    module = ModuleType("stand_in_for_mooncake")
    StandIn.cluster = Cluster()
    vars(module).update(MooncakeDistributedStore=StandIn, ReplicateConfig=SimpleNamespace)
    monkeypatch.setattr(mooncake, "import_module", lambda name: module)
    with listening() as url:
        yield url, StandIn.cluster
