"""Starts training in processes of its own, strikes them, and looks who is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from deepspec.artifacts import ArtifactRef
from deepspec.train.spec import TrainSpec
from infra.processes.launch import GUARD
from tests.given.apart import ROOT
from tests.given.published.site import Site

GRACE_SECONDS = 10
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else a launcher that comes back waits for what was said before
}


class Launched:
    """A training run of one rank, or of several under torchrun, under the guard that the stages run under.

    With `meeting`, torchrun's options, it is one launcher of several that meet.
    """

    def __init__(
        self, site: Site, name: str, spec: TrainSpec, ranks: int = 1, rest: float = 0.0, meeting: Sequence[str] = ()
    ) -> None:
        self.job = site.root / f"job-{name}-{time.monotonic_ns()}.json"
        told = {
            "name": name,
            "store": site.store.root,
            "scratch": str(site.placement.scratch),
            "cache": site.cache.ref.model_dump(),
            "spec": spec.model_dump(mode="json"),
            "placement": site.placement.model_dump(mode="json"),
            "rest": rest,
        }
        self.job.write_text(json.dumps(told))
        options = meeting or ["--standalone", f"--nproc-per-node={ranks}"]
        launcher = ["-m", "torch.distributed.run", *options] if meeting or ranks > 1 else []
        guard = [sys.executable, "-I", "-S", str(GUARD), str(GRACE_SECONDS), str(self.job.with_suffix(".log"))]
        self.guard = subprocess.Popen(
            [*guard, sys.executable, *launcher, "-m", "tests.given.published.worker", str(self.job)],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, step: int) -> None:
        """Return when the first rank says a step."""
        for line in self._told():
            if re.match(rf"STEP {step}\b", line):
                return
        raise AssertionError(f"it ended before step {step}: {self.log()}")

    def strike(self, whom: str, number: signal.Signals) -> None:
        """Send a signal to `rank 0`, `rank 1`, … , `all ranks` or the `launcher`."""
        for pid in self.pids(whom):
            os.kill(pid, number)

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        self._told().read()  # not communicate(): the end of stdin tells the guard to stop everything
        return self.guard.wait(timeout=120)

    def _told(self) -> IO[str]:
        assert self.guard.stdout is not None
        return self.guard.stdout

    def published(self) -> ArtifactRef:
        """Wait for the end and return what was published."""
        assert self.end() == 0, self.log()
        (line,) = re.findall(r"PUBLISHED (.*)", self.log())
        return ArtifactRef.model_validate_json(line)

    def log(self) -> str:
        path = self.job.with_suffix(".log")
        return path.read_text() if path.exists() else ""

    def pids(self, whom: str) -> list[int]:
        """Return the processes of this job that play a part."""
        return [pid for pid, part in self._parts().items() if part == whom or (whom == "all ranks" and "rank" in part)]

    def survivors(self) -> dict[int, str]:
        """Return who still works on this job, after the moment that a kernel needs."""
        for _ in range(50):
            if not self._parts():
                return {}
            time.sleep(0.1)
        return self._parts()

    def _parts(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_text()
                environment = (entry / "environ").read_text()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.job) not in command or state == "Z" or int(entry.name) == self.guard.pid:
                continue
            rank = re.search(r"\0RANK=(\d+)\0", environment)
            launcher = "torch.distributed.run" in command
            found[int(entry.name)] = "launcher" if launcher else f"rank {rank[1] if rank else 0}"
        return found
