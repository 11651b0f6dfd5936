"""The guard: a small process between a parent and its job, so that nothing of the job outlives the parent.

Started by `infra.processes.launch` as a plain file (no package, no site: it is up in some 30 ms):

    guard.py GRACE_SECONDS LOG_PATH COMMAND...

That of a stage stays in the parent's process group, so it gets the TERM of an orchestrator and the Ctrl-C of a
terminal; that of a server or an engine is in one of its own, for the parent still needs these while it ends. Its
stdin is a pipe that only the parent holds, so end of file says that the parent was killed; it is a child subreaper,
so processes that the job started in sessions of their own are found even after their parents died. On any of those
it sends TERM to everything below it, waits the grace period, sends KILL, and passes the job's exit code on
(128 + number for a signal). A job that needs longer to save its work says so in an event, and is given that much more.

The job runs in a session of its own and so gets exactly one TERM. What it prints goes through the guard into the log
and, while the parent reads, to the parent: a job that saves its work never meets a broken pipe.

Events of the job go the same way, but come through a pipe of their own: launchers, torch and C++ libraries write to
stdout, too, and in the middle of lines. The job, and whatever it starts, finds the pipe as a path in its environment.
The guard passes on whole events only, each on a line of its own.

Subreaper, process tree and the pipe of events need Linux. Elsewhere only the job's own process group is ended, and
events come with the output.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_NOT_STARTED = 127
KILL_SECONDS = 10.0
"""How long to wait for processes that were sent KILL (one that hangs in the kernel is left behind)."""
POLL_SECONDS = 0.05
EVENT = "\x1e"
"""First character of a line that is an event: the ASCII record separator (RFC 7464)."""
SAVING = "saving"
"""Name of the event that says how long saving takes, in `seconds`."""
EVENTS = "DEEPSPEC_EVENTS"
"""Variable of the job: path of the pipe that events are written to; events go to stdout where it is not set."""


class Guard:
    """One job with everything that it started."""

    def __init__(self, log_path: str) -> None:
        """Become the reaper of all descendants and start listening to signals."""
        self._log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._parent_reads = True
        self._stop_asked = False
        self._exit_code: int | None = None
        self._job = 0
        self._output, self._job_writes = os.pipe()
        self._output_open = True
        self._within_line = False
        self._events, self._event_writes = os.pipe()
        self._unfinished = b""
        self._saving = 0.0
        self._signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the wakeup pipe carries the number
        _control_process(PR_SET_CHILD_SUBREAPER, 1)

    def run(self, command: list[str], grace_seconds: float) -> int:
        """Run a command to its end, or to the end of the parent, and return its exit code."""
        try:
            self._start(command)
        except OSError as error:
            self._emit(f"cannot start {command[0]}: {error}\n".encode())
            return EXIT_NOT_STARTED
        finally:
            os.close(self._job_writes)
        while self._exit_code is None and not self._stop_asked:
            self._turn(None)
        self._signal_all(signal.SIGTERM)
        self._wait_until_empty(grace_seconds + self._saving)
        self._signal_all(signal.SIGKILL)
        self._wait_until_empty(KILL_SECONDS, repeat=signal.SIGKILL)
        self._drain()
        return self._exit_code if self._exit_code is not None else 128 + signal.SIGKILL

    def _start(self, command: list[str]) -> None:
        # preexec_fn is safe here: this process has one thread
        job = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._job_writes,
            stderr=self._job_writes,
            env={**os.environ, **self._told()},
            start_new_session=True,
            preexec_fn=lambda: _control_process(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._job = job.pid
        job.returncode = 0  # reaped below; keeps Popen from waiting for it

    def _told(self) -> dict[str, str]:
        """Return what the job is told of the pipe of events: a path, which launchers that close descriptors pass on."""
        return {EVENTS: f"/proc/{os.getpid()}/fd/{self._event_writes}"} if sys.platform == "linux" else {}

    def _turn(self, seconds: float | None) -> None:
        """Wait for something to happen (at most `seconds`) and note it."""
        watched = {
            self._signals: True,
            self._events: True,  # this process could write, too: it never ends
            self._output: self._output_open,
            0: not self._stop_asked,
        }
        ready, _, _ = select.select([descriptor for descriptor, open_ in watched.items() if open_], [], [], seconds)
        if 0 in ready and not os.read(0, 4096):
            self._stop_asked = True
        if self._signals in ready and not set(STOP_SIGNALS).isdisjoint(os.read(self._signals, 4096)):
            self._stop_asked = True
        if self._output in ready:
            data = os.read(self._output, 65536)
            self._output_open = bool(data)  # ends with the last writer
            self._emit(data)
        if self._events in ready:
            self._emit_events(os.read(self._events, 65536))
        self._reap()

    def _emit_events(self, data: bytes) -> None:
        """Pass on the events that are whole by now, between the lines of the output."""
        whole, newline, self._unfinished = (self._unfinished + data).rpartition(b"\n")
        if newline:
            self._saving = saving_seconds(whole.decode(errors="replace")) or self._saving
            self._emit((b"\n" if self._within_line else b"") + whole + newline)

    def _emit(self, data: bytes) -> None:
        if data:
            self._within_line = not data.endswith(b"\n")
        with contextlib.suppress(OSError):  # the disk is full: the job may not need it, and the parent still hears
            _write_all(self._log, data)
        if self._parent_reads:
            try:
                _write_all(1, data)
            except OSError:  # the parent is gone or has stopped reading
                self._parent_reads = False

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._job:
                code = os.waitstatus_to_exitcode(status)
                self._exit_code = code if code >= 0 else 128 - code

    def _wait_until_empty(self, seconds: float, repeat: signal.Signals | None = None) -> None:
        end = time.monotonic() + seconds
        while self._alive() and time.monotonic() < end:
            self._turn(POLL_SECONDS)
            if repeat is not None:
                self._signal_all(repeat)

    def _alive(self) -> bool:
        self._reap()
        return bool(_descendants()) if sys.platform == "linux" else self._exit_code is None

    def _signal_all(self, number: signal.Signals) -> None:
        if sys.platform != "linux":
            _send(os.killpg, self._job, number)
            return
        for pid in _descendants():
            _send(os.kill, pid, number)

    def _drain(self) -> None:
        for pipe, emit in ((self._output, self._emit), (self._events, self._emit_events)):
            os.set_blocking(pipe, False)
            try:
                while data := os.read(pipe, 65536):
                    emit(data)
            except BlockingIOError:  # the pipe of events, and an output held open by what could not be killed
                continue


def saving_seconds(lines: str) -> float | None:
    """Return how long the job that printed some lines saves once it is asked to stop; None where they do not say."""
    told = re.findall(rf'^{EVENT}{{"event": "{SAVING}", "seconds": (\d+(?:\.\d+)?)}}$', lines, re.MULTILINE)
    return float(told[-1]) if told else None


def _send(kill: Callable[[int, int], None], pid: int, number: signal.Signals) -> None:
    try:
        kill(pid, number)
    except ProcessLookupError:
        return


def _control_process(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _descendants() -> list[int]:
    """Return the living processes below this one; orphans are re-parented here, so the tree is whole.

    A child whose first thread has ended looks dead while others run. What is dead of our own children has been reaped.
    """
    own = os.getpid()
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if state != "Z" or int(parent) == own:
            children.setdefault(int(parent), []).append(int(entry.name))
    found, queue = [], [own]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


if __name__ == "__main__":
    sys.exit(Guard(sys.argv[2]).run(sys.argv[3:], float(sys.argv[1])))
