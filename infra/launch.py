"""Child processes that end with their parent, whatever ends the parent: see `infra.guard` for how.

On Linux nothing of a child survives a TERM, a Ctrl-C or a kill -9 of the parent, also not processes that it started
in sessions of their own (as torchrun starts its ranks). Elsewhere the child's process group is ended, which misses
those. After TERM a child has `grace_seconds` to save its work.
"""

import os
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepspec.errors import ChildError

GUARD = Path(__file__).with_name("guard.py")
GRACE_SECONDS = 20.0
"""Below the 30 s that a Prefect worker waits between its TERM and its KILL."""
LAST_LINES = 20
STOP_MARGIN_SECONDS = 15.0
"""What the guard may need beyond the grace period, until everything is dead and reaped."""


def run_guarded(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    grace_seconds: float = GRACE_SECONDS,
    cwd: Path | None = None,
) -> None:
    """Run a command to its end; its output goes to `log_path` and line by line to `on_line`.

    Args:
        command: program and arguments.
        log_path: file that the output (stdout and stderr) is appended to.
        env: variables on top of this process's environment.
        on_line: called with each line of output, without its end.
        grace_seconds: time between TERM and KILL when the parent is stopped.
        cwd: working folder of the command.

    Raises:
        ChildError: the exit code was not 0; carries the code (128 + number for a signal) and the last lines.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with _guard(command, log_path, env, cwd, grace_seconds, subprocess.PIPE) as guard:
        for raw in guard.stdout or ():
            line = raw.rstrip("\n")
            last.append(line)
            if on_line is not None:
                on_line(line)
        code = guard.wait()
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
            lines = self.log_path.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise ChildError(shlex.join(self._command), code, "\n".join(lines))


@contextmanager
def start_guarded(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """Start a command that runs until the block is left, then end it with everything that it started.

    The arguments are those of `run_guarded`; the output goes to `log_path` only.
    """
    with _guard(command, log_path, env, cwd, grace_seconds, subprocess.DEVNULL) as guard:
        yield Child(command, log_path, guard)


@contextmanager
def _guard(
    command: Sequence[str],
    log_path: Path,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    grace_seconds: float,
    stdout: int,
) -> Iterator[subprocess.Popen[str]]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    start = [sys.executable, "-I", "-S", str(GUARD), str(grace_seconds), str(log_path.absolute())]
    with subprocess.Popen(
        [*start, *command],
        stdin=subprocess.PIPE,  # never written to: its end tells the guard that this process is gone
        stdout=stdout,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=cwd,
        text=True,
        errors="replace",
    ) as guard:
        try:
            yield guard
        finally:
            _stop(guard, grace_seconds)


def _stop(guard: subprocess.Popen[str], grace_seconds: float) -> None:
    for pipe in (guard.stdin, guard.stdout):
        if pipe is not None:
            pipe.close()
    try:
        guard.wait(grace_seconds + STOP_MARGIN_SECONDS)
    except subprocess.TimeoutExpired:
        guard.kill()
