"""A worker, an S3 server and every deployment beside the session's Prefect server, and a tiny target to run them on."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from deepspec.store import Store
from infra.processes.launch import GUARD
from infra.server.setup import set_up
from infra.server.up import s3_server, worker
from infra.settings import default_root
from tests.given.targets.tiny import write_target

POOL = "deepspec-local"
SIZES = (
    "prepare.near_duplicates=null",
    "train.draft.num_layers=1",
    "train.objective.num_anchors=8",
    "train.steps=4",
    "train.global_batch=2",
    "train.checkpoint_every=2",
    "train.validation_samples=2",
    "evaluate.samples=1",
    "evaluate.max_new_tokens=8",
    "evaluate.calibration_samples=2",
    "evaluate.lossless_samples=1",
    "evaluate.untrained_samples=1",
    "benchmark.batches=[1,2]",
    "benchmark.samples=1",
    "benchmark.max_new_tokens=8",
    "benchmark.repeats=1",
)


@dataclass(frozen=True)
class Operated:
    """Where runs happen, and how a test talks to the server."""

    api: str
    data: Path
    stack: ExitStack

    def start_worker(self) -> None:
        """Run a worker for as long as the others here."""
        self.stack.enter_context(worker(self.api, POOL, self.data / "logs"))

    def parameters(self, *overrides: str) -> dict[str, Any]:
        """Return the parameters of a run on the tiny target."""
        choices = {
            "target": str(self.data / "target"),
            "answers": str(self.data / "answers.jsonl"),
            "benchmarks_dir": str(self.data / "questions"),
            "overrides": [*SIZES, *overrides],
        }
        return {"choices": choices, "site": {"limit": "deepspec-machine", "placement": {"threads": 1}}}

    def post(self, path: str, **body: Any) -> Any:
        return ask("POST", f"{self.api}/{path}", body)

    def get(self, path: str) -> Any:
        return ask("GET", f"{self.api}/{path}")

    def start(self, deployment: str, *overrides: str, **parameters: Any) -> str:
        """Start a run of a deployment and return its id."""
        found = self.get(f"deployments/name/{deployment}")["id"]
        told = {"parameters": {**self.parameters(*overrides), **parameters}, "state": {"type": "SCHEDULED"}}
        once = {"idempotency_key": uuid4().hex}  # asked again, the server tells the same run
        return str(self.post(f"deployments/{found}/create_flow_run", **told, **once)["id"])

    def finish(self, *runs: str) -> None:
        """Wait until runs are completed; fail with the log of one that ends otherwise."""
        for run in runs:
            until(partial(self._ended, run), seconds=900)
            assert self.state(run) == "Completed", self.logs(run)

    def _ended(self, run: str) -> bool:
        return self.state(run) in {"Completed", "Failed", "Crashed", "Cancelled"}

    def cancel(self, run: str) -> float:
        """Cancel a run as the UI does; return the seconds until no process of it was left."""
        start = time.monotonic()
        self.set_state(run, type="CANCELLING")
        until(lambda: not self.processes(run))
        took = time.monotonic() - start
        until(lambda: self.state(run) == "Cancelled")
        return took

    def set_state(self, run: str, **state: str) -> None:
        assert self.post(f"flow_runs/{run}/set_state", state=state)["status"] == "ACCEPT"

    def state(self, run: str) -> str:
        return str(self.get(f"flow_runs/{run}")["state_name"])

    def logs(self, run: str) -> str:
        """Return all lines that a run has logged."""
        lines: list[str] = []
        while True:
            which, page = {"flow_run_id": {"any_": [run]}}, {"limit": 200, "offset": len(lines)}
            rows = self.post("logs/filter", logs=which, sort="TIMESTAMP_ASC", **page)
            lines += [row["message"] for row in rows]
            if len(rows) < 200:
                return "\n".join(lines)

    def processes(self, run: str, word: str = "") -> list[int]:
        """Return the processes of a run whose command line has a word."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if run.encode() in environment and word.encode() in words and words:
                found.append(int(entry.name))
        return found


def workers() -> list[psutil.Process]:
    """Return the workers below this process, without their guards."""
    below = [(process, process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [process for process, words in below if "worker" in words and str(GUARD) not in words]


def _store() -> Store:
    """Return one store for all looks at it: the first look at object storage loads what S3 is described by."""
    return _store_at(default_root(), os.environ["AWS_ENDPOINT_URL"])


@cache
def _store_at(root: str, _: str) -> Store:
    return Store(root)


def manifests() -> dict[str, bytes]:
    """Return the commit mark of everything that is published."""
    store = _store()
    return {key: store.read_bytes(key) for key in store.list("") if key.endswith("manifest.json")}


def checkpoints() -> set[str]:
    """Return what trainings have saved in the store."""
    return {key for key in _store().list("draft") if "/checkpoints/" in key}


def until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """Return what the condition returns once that is true; fail where it never is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


@cache
def _client() -> httpx.Client:
    """Return the one client of this process: to make another takes as long as a hundred requests."""
    return httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


def ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """Return a server's answer; one that is busy (503, or silent) is asked again, as Prefect's own client does."""

    def answer() -> httpx.Response | None:
        try:
            told = _client().request(method, url, json=body)
        except httpx.TimeoutException:
            return None
        return None if told.status_code == httpx.codes.SERVICE_UNAVAILABLE else told

    return until(answer).raise_for_status().json()


def write_inputs(folder: Path) -> None:
    """Write a tiny random target, answers and questions."""
    write_target(folder / "target")
    rng = random.Random(0)
    rows = [
        {"messages": [{"role": "user", "content": f"{n} {text}"}, {"role": "assistant", "content": text[::-1]}]}
        for n in range(40)
        for text in ["".join(rng.choices("abc xyz", k=40))]
    ]
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "questions").mkdir()
    (folder / "questions" / "small.jsonl").write_text('{"turns": ["What is it?"]}\n')


@contextmanager
def operate(api: str, data: Path) -> Iterator[Operated]:
    """Deploy everything and run a worker, with an S3 server as the store."""
    write_inputs(data)
    with ExitStack() as stack:
        change = stack.enter_context(pytest.MonkeyPatch.context())
        variables = stack.enter_context(s3_server(data / "logs"))
        quick = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        for name, value in {**variables, **quick, "DEEPSPEC_DATA_DIR": str(data), "OMP_NUM_THREADS": "1"}.items():
            change.setenv(name, value)
        assert set_up(api, "local") == POOL
        operated = Operated(api, data, stack)
        operated.start_worker()
        yield operated


def environment(api: str) -> dict[str, str]:
    """Return the variables of a command that talks to the server."""
    return {**os.environ, "PREFECT_API_URL": api, "COLUMNS": "250"}
