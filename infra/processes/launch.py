"""Child processes that end with their parent, whatever ends the parent: see `infra.processes.guard` for how.

On Linux nothing of a child survives a TERM, a Ctrl-C or a kill -9 of the parent, also not processes that it started
in sessions of their own (as torchrun starts its ranks). Elsewhere the child's process group is ended, which misses
those. After TERM a child has `grace_seconds` to save its work, and beyond them as long as it said that saving takes.
"""

import os
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import ChildError
from infra.processes.guard import EVENT, saving_seconds
from infra.settings import own_packages

GUARD = Path(__file__).with_name("guard.py")
GRACE_SECONDS = 20.0
"""Below the 30 s that a Prefect worker waits between its TERM and its KILL."""
LAST_LINES = 20
LAST_BYTES = 16384
"""What is read of a log to find its last lines."""
WATCH_SECONDS = 2.0
"""How often a running command is asked whether it has to stop."""
STOP_MARGIN_SECONDS = 15.0
"""What the guard may need beyond the grace period, until everything is dead and reaped."""


@dataclass(slots=True)
class _Grace:
    """What lies between TERM and KILL."""

    seconds: float
    saving: float = 0.0
    """What the job has asked for beyond them."""

    def hear(self, line: str) -> None:
        """Take over what an event says."""
        self.saving = saving_seconds(line) or self.saving


def run_guarded(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    grace_seconds: float = GRACE_SECONDS,
    stop: Callable[[], Exception | None] | None = None,
) -> None:
    """Run a command to its end; its output goes to `log_path` and line by line to `on_line`.

    Args:
        command: program and arguments.
        log_path: file that the output (stdout and stderr) is appended to.
        env: variables on top of this process's environment.
        on_line: called with each line of output, and each event (see `infra.processes.guard`), without its end.
        grace_seconds: time between TERM and KILL when the parent is stopped; one that says how long it saves has more.
        stop: asked every few seconds; what it returns ends the command, with its grace period, and is raised.

    Raises:
        ChildError: the exit code was not 0; carries the code (128 + number for a signal) and the last lines.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    grace = _Grace(grace_seconds)
    with _guard(command, log_path, env, grace, subprocess.PIPE) as guard, _watched(guard, stop) as reasons:
        for raw in guard.stdout or ():
            line = raw.rstrip("\n")
            if line.startswith(EVENT):
                grace.hear(line)
            else:
                last.append(line)
            if on_line is not None:
                on_line(line)
        code = guard.wait()
    if reasons:
        raise reasons[0]
    if code != 0:
        raise ChildError(shlex.join(command), code, "\n".join(last))


class Child:
    """A long-lived child process, such as an engine."""

    def __init__(self, command: Sequence[str], log_path: Path, guard: subprocess.Popen[str]) -> None:
        """Take over a guard that was started; use `start_guarded`."""
        self._command = command
        self._guard = guard
        self.log_path = log_path

    def check(self) -> None:
        """Return while the child runs.

        Raises:
            ChildError: it has ended, with whatever code.
        """
        code = self._guard.poll()
        if code is not None:
            raise ChildError(shlex.join(self._command), code, last_lines(self.log_path))

    def runs(self) -> bool:
        """Return whether the child has not ended yet."""
        return self._guard.poll() is None


def last_lines(log_path: Path) -> str:
    """Return the end of a log, however long that is."""
    with log_path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-LAST_LINES:])


@contextmanager
def start_guarded(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Iterator[Child]:
    """Start a command that runs until the block is left, then end it with everything that it started.

    The arguments are those of `run_guarded`; the output goes to `log_path` only. A Ctrl-C, and a signal to the process
    group of this one, do not reach it: what is in the block, and needs it, ends first.
    """
    with _guard(command, log_path, env, _Grace(grace_seconds), subprocess.DEVNULL, group=0) as guard:
        yield Child(command, log_path, guard)


@contextmanager
def _guard(
    command: Sequence[str],
    log_path: Path,
    env: Mapping[str, str] | None,
    grace: _Grace,
    stdout: int,
    group: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, "-I", "-S", str(GUARD), str(grace.seconds), str(log_path.absolute())]
    with subprocess.Popen(
        [*start, *command],
        stdin=subprocess.PIPE,  # never written to: its end tells the guard that this process is gone
        stdout=stdout,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **own_packages(), **(env or {})},
        text=True,
        errors="replace",
        process_group=group,  # None: that of this process; 0: one of its own
    ) as guard:
        try:
            yield guard
        finally:
            _stop(guard, grace.seconds + grace.saving)


@contextmanager
def _watched(guard: subprocess.Popen[str], stop: Callable[[], Exception | None] | None) -> Iterator[list[Exception]]:
    """Yield what is to be raised once `stop` has ended the guard's job: nothing, or one exception."""
    reasons: list[Exception] = []
    ended = threading.Event()

    def watch(asked: Callable[[], Exception | None]) -> None:
        while not ended.wait(WATCH_SECONDS):
            reason = asked()
            if reason is not None and guard.stdin is not None:
                reasons.append(reason)
                guard.stdin.close()  # the guard takes it for the end of this process: TERM, grace, KILL
                return

    thread = threading.Thread(target=watch, args=(stop,), daemon=True) if stop is not None else None
    try:
        if thread is not None:
            thread.start()
        yield reasons
    finally:
        ended.set()
        if thread is not None:
            thread.join()


def _stop(guard: subprocess.Popen[str], grace_seconds: float) -> None:
    for pipe in (guard.stdin, guard.stdout):
        if pipe is not None:
            pipe.close()
    try:
        guard.wait(grace_seconds + STOP_MARGIN_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
