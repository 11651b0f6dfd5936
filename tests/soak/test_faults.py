"""Faults that users of such software met, each rebuilt in a folder: all of them, whole, through the command line.

The folders lie where DEEPSPEC_FAULTS says. Each has a `run.sh`, which takes `deepspec` from PATH and its places from
the environment. What its commands have to do stands in `tests.soak.faults_of_data`, `tests.soak.faults_of_surroundings`
and `tests.soak.faults_of_use`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.given.apart import ROOT
from tests.given.server.session import api  # noqa: F401 - a fixture
from tests.soak.fault import NEVER, Fault, Told
from tests.soak.faults_of_data import DATA
from tests.soak.faults_of_surroundings import SURROUNDINGS
from tests.soak.faults_of_use import USE

FAULTS = {**DATA, **SURROUNDINGS, **USE}
MISSING = "set DEEPSPEC_FAULTS to a folder of faults, each with a run.sh"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]


def root() -> Path | None:
    """Return the folder of faults, if there is one."""
    value = os.environ.get("DEEPSPEC_FAULTS")
    return Path(value).resolve() if value and Path(value).is_dir() else None


def cases() -> list[object]:
    """Return every way in which a folder is run; one that the table does not know is a case, too: it fails."""
    folder = root()
    if folder is None:
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=MISSING))]
    names = sorted(path.parent.name for path in folder.glob("*/run.sh"))
    return [
        pytest.param(folder / name, fault, id=f"{name}{'-' * bool(number)}{number or ''}")
        for name in names
        for number, fault in enumerate(FAULTS.get(name, (None,)))
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the folders share what is made once: the plain target, a store with a draft of it."""
    return tmp_path_factory.mktemp("base")


@pytest.fixture
def places(api: str, base: Path, tmp_path: Path) -> Iterator[dict[str, str]]:  # noqa: F811
    """Yield the environment of a run: everything in folders of its own, and what is called is of this checkout."""
    for name in ("bin", "work", "home", "data"):
        (tmp_path / name).mkdir()
    script(
        tmp_path / "bin" / "python",
        'case "$1" in */show_cache.py|*/show_answers.py) shift; set -- -m tests.soak.shown "$@" ;; esac\n'
        f'exec "{sys.executable}" "$@"',
    )
    script(
        tmp_path / "bin" / "deepspec",
        'case "$1 $2" in\n'
        '"cache import"|"cache verify"|"cache stat") ;;\n'
        "plan*|prepare*|regenerate*|cache*|train*|export*|evaluate*|benchmark*|run*) more=$ALSO ;;\n"
        f'esac\nexec "{sys.executable}" -m cli.main "$@" $more',
    )
    yield {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": api,
        "ALSO": "",
        "BASE": str(base),
        "WORK": str(tmp_path / "work"),
        "HOME": str(tmp_path / "home"),
        "DEEPSPEC_DATA_DIR": str(tmp_path / "data"),
    }
    for name in ("work", "base"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)


@pytest.mark.parametrize(("folder", "fault"), cases())
def test_every_fault_is_met_as_is_right(
    folder: Path, fault: Fault | None, places: dict[str, str], tmp_path: Path
) -> None:
    assert fault is not None, f"{folder.name} has no entry in tests/soak/faults_of_*.py: say there what is right"
    for need in fault.needs:
        reason = lacking(need, folder)
        if reason:
            pytest.skip(f"{folder.name} needs {reason}")
    if fault.also:
        (tmp_path / "base").mkdir()
        places |= {"ALSO": " ".join(f"--set {each}" for each in fault.also), "BASE": str(tmp_path / "base")}
    transcript = run(folder, places)
    print(transcript)  # pytest shows it where the test fails
    judge(fault, transcript)


def judge(fault: Fault, transcript: str) -> None:
    """Hold what `run.sh` printed against what is right."""
    for pattern in (*NEVER, *fault.never):
        assert not re.search(pattern, transcript, re.M), f"shown is {pattern!r}"
    found = commands(transcript)
    for number, wanted in enumerate(fault.commands):
        assert number < len(found), f"command {number}, {wanted.command}, was not run"
        check(number, wanted, *found[number])
    for command, text, code in found[len(fault.commands) :]:
        assert fault.later, f"one command too many: {command}"
        assert code == 0 or any(re.search(pattern, text, re.M) for pattern in fault.later), f"deepspec {command}"
    for pattern in fault.shown:
        assert re.search(pattern, transcript, re.M), f"nothing shown is like {pattern!r}"


def check(number: int, wanted: Told, command: str, text: str, code: int) -> None:
    """Hold a command against what it had to do."""
    which = f"command {number}, deepspec {command}"
    words = f"{command.split(' --')[0]} "
    named = not wanted.command or words.startswith(f"{wanted.command} ")
    assert (named, code) == (True, wanted.code), which
    for pattern in wanted.says:
        assert re.search(pattern, text, re.M), f"{which} does not say {pattern!r}"
    for pattern in wanted.never:
        assert not re.search(pattern, text, re.M), f"{which} says {pattern!r}"


def commands(transcript: str) -> list[tuple[str, str, int]]:
    """Return words, output and exit code of every command that `run.sh` tells of; no words where it does not say."""
    found = []
    *parts, _ = re.split(r"^\[exit (\d+)\]\n", transcript + "\n", flags=re.M)
    for text, code in zip(parts[::2], parts[1::2], strict=True):
        _, said, last = text.rpartition("$ deepspec ")
        words, _, rest = last.partition("\n") if said else ("", "", text)
        found.append((words, rest, int(code)))
    return found


def run(folder: Path, environment: dict[str, str]) -> str:
    """Return what `run.sh` printed; nothing that it started outlives a test that is stopped."""
    log = Path(environment["HOME"]) / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", str(folder / "run.sh")], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    return log.read_text(errors="replace")


def lacking(need: str, folder: Path) -> str:
    """Return what a folder needs and this machine does not have; empty where it has it."""
    if need == "golden" and not (folder.parents[1] / "golden").is_dir():
        return "golden numbers beside the folder of faults"
    if need == "mount" and not may_mount():
        return "the right to mount a small file system (root)"
    return ""


def may_mount() -> bool:
    """Return whether this process could mount a file system: a namespace of its own is tried, and nothing is left."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
