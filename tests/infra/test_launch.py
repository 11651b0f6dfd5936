"""Child processes end with their parent, whatever ends the parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deepspec.errors import ChildError
from infra.processes import guard
from infra.processes.guard import EVENT, saving_seconds
from infra.processes.launch import run_guarded, start_guarded

TREE = """
import os, pathlib, signal, subprocess, sys, time

def note(name):
    pathlib.Path(sys.argv[1], f"{name}.pid").write_text(str(os.getpid()))

if len(sys.argv) == 2:  # the job: like torchrun, it starts its ranks in sessions of their own
    for rank in ("polite", "stubborn"):
        subprocess.Popen([sys.executable, __file__, sys.argv[1], rank], start_new_session=True)
    note("job")
else:
    if sys.argv[2] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(sys.argv[2])
print("up", flush=True)
time.sleep(300)
"""
PARENT = """
import sys
from pathlib import Path
from infra.processes.launch import run_guarded

run_guarded(sys.argv[2:], log_path=Path(sys.argv[1], "job.log"), on_line=print, grace_seconds=0.5)
"""
SAVING = """
import signal, sys, time
from pathlib import Path
from infra.processes.launch import start_guarded

def stop(*_):
    sys.exit(0)

folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
with start_guarded(sys.argv[2:], log_path=folder / "job.log", grace_seconds=0.5) as child:
    try:
        (folder / "ready").touch()
        time.sleep(300)
    finally:
        time.sleep(1.5)
        (folder / "outlived").write_text(str(child.runs()))
"""
"""A parent that needs some time to end, as a run does that saves."""
NAMES = ("job", "polite", "stubborn")


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def python(folder: Path, text: str, *arguments: str) -> list[str]:
    return [sys.executable, str(script(folder, "job.py", text)), *arguments]


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("waited in vain")
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder: Path) -> list[int]:
    files = [folder / f"{name}.pid" for name in NAMES]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A parent that runs, under the guard, a job with one polite and one stubborn child in sessions of their own."""
    job = python(tmp_path, TREE, str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, script(tmp_path, "parent.py", PARENT), tmp_path, *job],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = pids(tmp_path)
    yield parent, found
    parent.kill()
    parent.wait()
    for pid in filter(alive, found):
        os.kill(pid, signal.SIGKILL)


def test_passes_the_output_on_line_by_line_and_keeps_it_in_the_log(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "deep" / "job.log"
    run_guarded([sys.executable, "-c", "print('one'); print('two \\u00e9')"], log_path=log, on_line=lines.append)
    assert lines == ["one", "two é"]
    assert log.read_text() == "one\ntwo é\n"


def test_runs_with_the_given_variables(tmp_path: Path) -> None:
    lines: list[str] = []
    command = [sys.executable, "-c", "import os; print(os.environ['COLOUR'])"]
    run_guarded(command, log_path=tmp_path / "log", env={"COLOUR": "blue"}, on_line=lines.append)
    assert lines == ["blue"]


def test_a_command_that_has_to_stop_has_its_grace_period_and_the_reason_is_raised(tmp_path: Path) -> None:
    saves = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
    reason = KeyError("too expensive")
    lines: list[str] = []
    with pytest.raises(KeyError, match="too expensive"):
        run_guarded(
            [sys.executable, "-c", f"{saves}print('up')\ntime.sleep(300)"],
            log_path=tmp_path / "log",
            on_line=lines.append,
            stop=lambda: reason if lines else None,
        )
    assert lines == ["up", "saved"]


def test_an_exit_code_is_passed_on_with_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="exit code 7") as caught:
        run_guarded([sys.executable, "-c", "print('out of memory'); exit(7)"], log_path=tmp_path / "log")
    assert caught.value.exit_code == 7
    assert caught.value.last_lines == "out of memory"


def test_a_signal_is_passed_on_as_128_and_its_number(tmp_path: Path) -> None:
    with pytest.raises(ChildError) as caught:
        run_guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log_path=tmp_path / "log")
    assert caught.value.exit_code == 137


def test_a_command_that_does_not_exist_is_a_child_error(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="no-such-program") as caught:
        run_guarded(["no-such-program"], log_path=tmp_path / "log")
    assert caught.value.exit_code == 127


def test_processes_left_behind_by_a_job_that_ended_are_ended(tmp_path: Path) -> None:
    leave = "import subprocess; print(subprocess.Popen(['sleep', '300'], start_new_session=True).pid)"
    lines: list[str] = []
    run_guarded([sys.executable, "-c", leave], log_path=tmp_path / "log", on_line=lines.append)
    assert not alive(int(lines[0]))


def test_an_error_while_reading_ends_the_job(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise KeyError(line)

    with pytest.raises(KeyError):
        run_guarded(python(tmp_path, TREE, str(tmp_path)), log_path=tmp_path / "log", on_line=refuse, grace_seconds=0.5)
    noted = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert not any(map(alive, noted))


def test_a_parent_that_does_not_read_does_not_block_the_end(tmp_path: Path) -> None:
    flood = "import time\nwhile True: print('x' * 1000)"

    def stop(line: str) -> None:
        time.sleep(0.5)  # the pipe is full by now
        raise KeyError(line)

    start = time.monotonic()
    with pytest.raises(KeyError):
        run_guarded([sys.executable, "-c", flood], log_path=tmp_path / "log", on_line=stop, grace_seconds=5)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_survives_a_parent_that_gets(
    tree: tuple[subprocess.Popen[bytes], list[int]], number: signal.Signals
) -> None:
    parent, found = tree
    parent.send_signal(number)
    wait_for(lambda: not any(map(alive, found)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_process_survives_when_the_process_group_gets(
    tree: tuple[subprocess.Popen[bytes], list[int]], number: signal.Signals
) -> None:
    parent, found = tree
    os.killpg(parent.pid, number)  # Ctrl-C of a terminal, TERM of an orchestrator
    wait_for(lambda: not any(map(alive, found)))


def test_a_job_has_the_grace_period_to_save_its_work_after_the_parent_was_killed(tmp_path: Path) -> None:
    save = """
    import pathlib, signal, sys, time
    def stop(*_):
        for step in range(2000):  # more than a pipe holds: printing must not fail though nobody reads
            print("saving", step, "." * 100)
        pathlib.Path(sys.argv[1], "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    for name in ("job", "polite", "stubborn"):
        pathlib.Path(sys.argv[1], f"{name}.pid").write_text("0")
    time.sleep(300)
    """
    parent_path = script(tmp_path, "parent.py", PARENT.replace("0.5", "20"))
    parent = subprocess.Popen([sys.executable, parent_path, tmp_path, *python(tmp_path, save, str(tmp_path))])
    pids(tmp_path)
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "saved").exists)
    wait_for(lambda: "saving 1999" in (tmp_path / "job.log").read_text())  # the guard may still be writing


def test_events_are_not_among_the_last_lines_of_a_job_that_failed(tmp_path: Path) -> None:
    speak = "from infra.children.child import emit; print('out of memory'); emit(event='log', message='hello'); exit(7)"
    heard: list[str] = []
    with pytest.raises(ChildError) as caught:
        run_guarded([sys.executable, "-c", speak], log_path=tmp_path / "log", on_line=heard.append)
    assert caught.value.last_lines == "out of memory"
    assert [line for line in heard if line.startswith(EVENT)] == [f'{EVENT}{{"event": "log", "message": "hello"}}']


def test_a_job_whose_parent_was_killed_can_still_tell_events(tmp_path: Path) -> None:
    """More than a pipe holds: telling must not fail, nor wait, though nobody listens."""
    tell = """
    import pathlib, signal, sys, time
    from infra.children.child import emit
    def stop(*_):
        for step in range(50):
            emit(event="log", message="saving" + "." * 20_000)
        pathlib.Path(sys.argv[1], "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    emit(event="log", message="up")
    for name in ("job", "polite", "stubborn"):
        pathlib.Path(sys.argv[1], f"{name}.pid").write_text("0")
    time.sleep(300)
    """
    parent_path = script(tmp_path, "parent.py", PARENT.replace("0.5", "20"))
    command = [sys.executable, str(parent_path), str(tmp_path), *python(tmp_path, tell, str(tmp_path))]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    pids(tmp_path)
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "saved").exists)


def test_a_full_disk_under_the_log_ends_no_job() -> None:
    heard: list[str] = []
    run_guarded([sys.executable, "-c", "print('one'); print('two')"], log_path=Path("/dev/full"), on_line=heard.append)
    assert heard == ["one", "two"]


def test_an_event_waits_for_no_line_to_end(tmp_path: Path) -> None:
    """A progress bar that never ends its line does not hold events back, and is not torn apart otherwise."""
    speak = (
        "import sys; from infra.children.child import emit; "
        "print('10 %', end='', flush=True); emit(event='log', message='a')"
    )
    heard: list[str] = []
    run_guarded([sys.executable, "-c", speak], log_path=tmp_path / "log", on_line=heard.append)
    assert sorted(heard) == [f'{EVENT}{{"event": "log", "message": "a"}}', "10 %"]


def test_a_long_lived_child_ends_with_its_block(tmp_path: Path) -> None:
    with start_guarded(python(tmp_path, TREE, str(tmp_path)), log_path=tmp_path / "log", grace_seconds=0.5) as child:
        found = pids(tmp_path)
        child.check()
        assert all(map(alive, found))
    assert not any(map(alive, found))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_long_lived_child_does_not_end_before_the_block_that_needs_it(tmp_path: Path, number: signal.Signals) -> None:
    """A Ctrl-C reaches a whole process group: a run that saves its work still talks to server and engine."""
    parent_path = script(tmp_path, "parent.py", SAVING)
    parent = subprocess.Popen(
        [sys.executable, parent_path, tmp_path, *python(tmp_path, TREE, str(tmp_path))], start_new_session=True
    )
    found = pids(tmp_path)
    wait_for((tmp_path / "ready").exists)
    os.killpg(parent.pid, number)
    assert parent.wait(20) == 0
    assert (tmp_path / "outlived").read_text() == "True"
    wait_for(lambda: not any(map(alive, found)))


def test_a_long_lived_child_that_ended_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('x' * 1_000_000); print('no such model'); exit(3)"]
    with start_guarded(command, log_path=tmp_path / "log") as child:
        with pytest.raises(ChildError, match="no such model") as caught:
            wait_for(lambda: child.check())
        assert not child.runs()
        assert caught.value.exit_code == 3
        assert len(str(caught.value)) < 20_000


def test_a_job_does_not_outlive_a_guard_that_was_killed(tree: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    parent, (job, *_) = tree
    guard = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
    os.kill(int(guard), signal.SIGKILL)
    wait_for(lambda: not alive(job))


def test_a_job_that_closes_its_output_costs_no_processor_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, time; os.close(1); os.close(2); time.sleep(300)"]
    with start_guarded(command, log_path=tmp_path / "log", grace_seconds=1):
        guard = int(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[-1])
        time.sleep(1)
        assert sum(psutil.Process(guard).cpu_times()[:2]) < 0.3


def test_a_job_that_says_how_long_it_saves_is_given_that_beyond_its_grace_period(tmp_path: Path) -> None:
    """It begins to save when the grace period of 0.2 s is over."""
    save = """
    import pathlib, signal, sys, time
    from infra.children.child import EventReport
    def stop(*_):
        time.sleep(1)
        pathlib.Path(sys.argv[1], "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    EventReport().saving(60)
    EventReport().log("up")
    time.sleep(300)
    """
    reason, heard = KeyError("too expensive"), list[str]()
    with pytest.raises(KeyError, match="too expensive"):
        run_guarded(
            python(tmp_path, save, str(tmp_path)),
            log_path=tmp_path / "log",
            on_line=heard.append,
            grace_seconds=0.2,
            stop=lambda: reason if len(heard) > 1 else None,
        )
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (f'{EVENT}{{"event": "saving", "seconds": 210.0}}', 210.0),
        (f'{EVENT}{{"event": "saving", "seconds": 1}}\n{EVENT}{{"event": "saving", "seconds": 2.5}}', 2.5),
        (f'{EVENT}{{"event": "saving", "seconds": "soon"}}', None),
        ('{"event": "saving", "seconds": 210.0}', None),
        ("", None),
    ],
)
def test_what_a_job_says_of_saving_is_read_or_passed_over(lines: str, seconds: float | None) -> None:
    assert saving_seconds(lines) == seconds


FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_whose_first_thread_has_ended_is_alive() -> None:
    """An engine looks like that while it ends: who does not wait for it loses what it took of the processor."""
    with subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS]) as child:
        stat, end = Path(f"/proc/{child.pid}/stat"), time.monotonic() + 60
        while stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < end:
            time.sleep(0.05)
        try:
            assert child.pid in guard._descendants()
        finally:
            child.kill()
