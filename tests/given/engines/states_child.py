"""Serves states as a process of its own, so that a test can kill it."""

import threading
from multiprocessing.connection import Connection
from typing import Any

from tests.given.engines.states import Served, serving


class _Told(list[list[int]]):
    """What was asked; each time it is told to whoever started this process."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def append(self, ids: list[int]) -> None:
        self._pipe.send(ids)


def main(pipe: Connection, port: int, faults: dict[str, Any]) -> None:
    """Serve on a port, saying which once it is open, and then each request, until this process is killed."""
    engine = Served(**faults)
    engine.port = port
    with serving(engine):
        pipe.send(engine.port)
        engine.asked = _Told(pipe)
        threading.Event().wait()
