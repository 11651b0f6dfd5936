"""Children that are killed after some steps, for real."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.given.heard import Heard


def run_and_kill(main: Callable[..., None], steps: int, *args: Any) -> int | None:
    """Start a child, kill it after so many steps, and return its exit code.

    Args:
        main: of the child; it gets a pipe to tell each step through, and the arguments.
        steps: after which it is killed.
        args: for it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([main.__module__])  # libraries are imported once, not once a child
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=main, args=(there, *args))
    child.start()
    there.close()
    with contextlib.suppress(EOFError):
        for _ in range(steps):
            here.recv()
        child.kill()
    child.join()
    return child.exitcode


class Telling(Heard):
    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        self._pipe.send("step")
