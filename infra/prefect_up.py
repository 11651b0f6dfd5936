"""A Prefect server on loopback with a worker and every deployment, for as long as the command runs."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from deepspec.errors import ChildError, SpecError
from infra.launch import start_guarded
from infra.settings import data_dir, environment

HOST = "127.0.0.1"
POOL = "deepspec-local"
START_SECONDS = 120.0
PREFECT_FILE = Path(__file__).resolve().parent.parent / "deployments" / "prefect.yaml"
_QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@contextmanager
def server(port: int, logs: Path) -> Iterator[str]:
    """Run a Prefect server and yield its API URL once it is healthy.

    Args:
        port: on loopback.
        logs: folder for `server.log`.

    Raises:
        SpecError: something else listens on the port.
        ChildError: the server ended.
    """
    api = f"http://{HOST}:{port}/api"
    if _healthy(api):
        raise SpecError(f"something answers on {api} already; stop it, or choose another port with --port")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with start_guarded(command, log_path=logs / "server.log", env=_QUIET) as child:
        end = time.monotonic() + START_SECONDS
        while not _healthy(api):
            child.check()
            if time.monotonic() > end:
                raise ChildError(" ".join(command), 0, f"not healthy in time; see {child.log_path}")
            time.sleep(0.3)
        yield api


@contextmanager
def worker(api: str, logs: Path) -> Iterator[None]:
    """Run a process worker of our pool, made where it is missing."""
    prefect(api, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with start_guarded(command, log_path=logs / "worker.log", env=_env(api), grace_seconds=28):
        yield


def deploy(api: str) -> None:
    """Create or update every deployment of `deployments/prefect.yaml`."""
    prefect(api, "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE))


def prefect(api: str, *arguments: str) -> None:
    """Run one prefect command against a server.

    Raises:
        ChildError: it failed.
    """
    words = list(arguments)
    command = [sys.executable, "-m", "prefect", *words]
    done = subprocess.run(
        command,
        env=environment(_env(api)),
        cwd=PREFECT_FILE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ChildError(" ".join(command), done.returncode, (done.stdout + done.stderr)[-2000:])


def up(port: int, say: Callable[[str], None]) -> None:
    """Run server and worker with all deployments until interrupted."""
    logs = data_dir() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with server(port, logs) as api, worker(api, logs):
        deploy(api)
        say(f"Prefect UI     {api.removesuffix('/api')}")
        say(f"Prefect API    {api}   (export PREFECT_API_URL={api})")
        say(f"work pool      {POOL}; logs in {logs}")
        say("try            prefect deployment run build-draft/local --param plan=... ; stop with Ctrl-C")
        while True:
            time.sleep(3600)


def _env(api: str) -> dict[str, str]:
    home = str(PREFECT_FILE.parent.parent)
    return {**_QUIET, "PREFECT_API_URL": api, "DEEPSPEC_HOME": home, "DEEPSPEC_DATA_DIR": str(data_dir())}


def _healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=2).is_success
    except httpx.TransportError:
        return False
