"""Two runs of one data folder at the same stage: they would write the same scratch files, so they take turns."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT_SECONDS = 1.0
"""How often a run that waits looks whether it is its turn."""


@contextmanager
def turn(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a folder, made where it is missing, for as long as the block runs.

    The folder is free again when the process that holds it ends, however that ends.

    Args:
        folder: what two processes must not write at the same time.
        waiting: called before each wait; what it raises ends the waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        while not _taken(held):
            waiting()
            time.sleep(WAIT_SECONDS)
        yield
    finally:
        os.close(held)


def _taken(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
