"""A Prefect server on loopback with a worker and every deployment, and whatever else is asked for, as one process.

Everything runs under the guard below the process of `up`, so ending that one process (Ctrl-C, `down`, kill -9) ends
all of it and nothing else. `up.json` in the data folder says which process it is.
"""

import fcntl
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from deepspec.errors import ChildError, SpecError
from deepspec.plan import presets
from deepspec.plan.plan import TargetPlan
from infra.children.targets import ready_target
from infra.engines.managed import LOOPBACK, ManagedEngines, Served, free_port, start_engines
from infra.processes.launch import Child, start_guarded
from infra.server.setup import ENVIRONMENTS, set_up, worker_environment
from infra.settings import data_dir, default_root, server_auth, server_database, use

START_SECONDS = 300.0
"""A busy machine may need long; a server that ends is noticed at once."""
SERVER_GRACE_SECONDS = 5.0
"""A server waits for its clients to go, which they do not; its database survives a KILL."""
WORKER_GRACE_SECONDS = 28.0
WATCH_SECONDS = 2.0
"""How often `up` looks whether worker and server still run."""
BUCKET = "deepspec"
ANY_HOST = "0.0.0.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedServer:
    """What to start."""

    host: str = LOOPBACK
    port: int = 4200
    s3: bool = False
    """An S3 server in memory; artifacts and results go there."""
    engine: str | None = None
    """A target preset that an engine serves."""


def up(wanted: WantedServer, say: Callable[[str], None]) -> None:
    """Run everything until interrupted or until `down`; a worker that is lost is started again.

    Raises:
        SpecError: it runs already, something else has the port, or a server for others has no password.
        ChildError: the server ended.
    """
    if running() is not None:
        raise SpecError(f"it runs already, see {_note()}; stop it with: deepspec down")
    if wanted.host != LOOPBACK and server_auth() is None:
        raise SpecError(f"--host {wanted.host} is not loopback: set PREFECT_SERVER_API_AUTH_STRING=user:password first")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs = data_dir() / "logs"
    with ExitStack() as stack:
        stack.callback(_note().unlink, missing_ok=True)
        _remember(None)
        objects = stack.enter_context(s3_server(logs)) if wanted.s3 else {}
        use(objects)
        api, serving = stack.enter_context(_server(wanted.port, logs, wanted.host))
        pool = set_up(api, "local")
        engine = stack.enter_context(_engine(wanted.engine, logs)) if wanted.engine else None
        for line in _told(api, objects, engine):
            say(line)
        _remember(api)
        while True:
            _work(api, pool, serving)
            say(f"the worker has ended, see {logs / 'worker.log'}; another one starts")


def _told(api: str, objects: Mapping[str, str], engine: str | None) -> list[str]:
    """Return what people need to know of what runs."""
    rows = [
        ("Prefect UI", api.removesuffix("/api")),
        ("Prefect API", f"{api}   (export PREFECT_API_URL={api})"),
        ("password", "export PREFECT_API_AUTH_STRING=… as the server has it" if server_auth() else ""),
        ("store", default_root()),
        ("", f"(export {' '.join(f'{name}={value}' for name, value in objects.items())})" if objects else ""),
        ("logs", str(data_dir() / "logs")),
        ("engine", engine or ""),
        ("try", "prefect deployment run build-draft/local --watch"),
        ("stop", "Ctrl-C, or deepspec down"),
    ]
    return [f"{what:<12} {told}" for what, told in rows if told]


def _work(api: str, pool: str, serving: Child) -> None:
    """Run a worker until it ends.

    Raises:
        ChildError: the server ended.
    """
    with worker(api, pool, data_dir() / "logs") as child:
        while child.runs():
            time.sleep(WATCH_SECONDS)
            serving.check()


def down() -> bool:
    """Stop what `up` started, and return whether there was something to stop.

    Raises:
        ChildError: it did not end in time.
    """
    process = running()
    if process is None:
        return False
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(2 * START_SECONDS)
    except psutil.TimeoutExpired as error:
        raise ChildError(f"deepspec up (process {process.pid})", 0, "it did not end; see its logs") from error
    return True


def running() -> psutil.Process | None:
    """Return the process of `up` in this data folder; None where there is none, or its number is another's by now."""
    try:
        told = json.loads(_note().read_text())
        process = psutil.Process(told["pid"])
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if process.create_time() == told["since"] and process.status() != psutil.STATUS_ZOMBIE else None


def running_api() -> str | None:
    """Return the API of the server that `up` runs in this data folder; None until everything is there."""
    return json.loads(_note().read_text())["api"] if running() is not None else None


@contextmanager
def server(port: int, logs: Path, meanwhile: Callable[[], object] = str) -> Iterator[str]:
    """Run a Prefect server on loopback and yield its API URL once it is healthy.

    Args:
        port: where it listens.
        logs: folder of its log.
        meanwhile: called while it starts, which takes a core for some seconds.

    Raises:
        SpecError: something else listens on the port.
        ChildError: the server ended.
    """
    with _server(port, logs, LOOPBACK, meanwhile) as (api, _):
        yield api


@contextmanager
def _server(port: int, logs: Path, host: str, meanwhile: Callable[[], object] = str) -> Iterator[tuple[str, Child]]:
    api = f"http://{LOOPBACK if host == ANY_HOST else host}:{port}/api"
    with _asking() as client:
        taken = _answers(client, f"{api}/health")
    if taken:
        raise SpecError(f"something answers on {api} already; stop it, or choose another port with --port")
    data_dir().mkdir(parents=True, exist_ok=True)  # the database is made there, its folder is not
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    env = {**server_database(), "PREFECT_SERVER_UI_API_URL": "/api"}  # whatever address a browser finds the UI at
    with ExitStack() as stack:
        with _one_at_a_time():
            child = stack.enter_context(
                start_guarded(command, log_path=logs / "server.log", env=env, grace_seconds=SERVER_GRACE_SECONDS)
            )
            meanwhile()
            _wait(child, f"{api}/health")
        yield api, child


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait while another server of this data folder starts: two that migrate one database break each other."""
    with (data_dir() / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the process, however that ends
        yield


@contextmanager
def worker(api: str, pool: str, logs: Path) -> Iterator[Child]:
    """Run a worker of a pool."""
    kind = next(place.type for place in ENVIRONMENTS.values() if place.pool == pool)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind]
    env = worker_environment(api)
    with start_guarded(command, log_path=logs / "worker.log", env=env, grace_seconds=WORKER_GRACE_SECONDS) as child:
        yield child


@contextmanager
def s3_server(logs: Path) -> Iterator[Mapping[str, str]]:
    """Run an S3 server in memory (moto) with a bucket; yield the variables that lead there."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    with start_guarded(command, log_path=logs / "s3.log") as child:
        _wait(child, url)
        httpx.put(f"{url}/{BUCKET}").raise_for_status()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "deepspec",
            "AWS_SECRET_ACCESS_KEY": "deepspec",
            "AWS_DEFAULT_REGION": "us-east-1",
            "DEEPSPEC_ROOT": f"s3://{BUCKET}/store",
        }


@contextmanager
def _engine(name: str, logs: Path) -> Iterator[str]:
    target = TargetPlan.model_validate(presets.target(name)["target"])
    files = ready_target(target, target.name)
    served = Served(name=target.name, gguf=files.gguf, folder=files.folder)
    with start_engines(ManagedEngines(count=1), served, logs) as endpoints:
        yield f"{endpoints[0].url}   (--endpoint {endpoints[0].url} --model {target.name})"


def _note() -> Path:
    return data_dir() / "up.json"


def _remember(api: str | None) -> None:
    me = psutil.Process()
    _note().parent.mkdir(parents=True, exist_ok=True)
    _note().write_text(json.dumps({"pid": me.pid, "since": me.create_time(), "api": api}))


def _wait(child: Child, url: str) -> None:
    end = time.monotonic() + START_SECONDS
    with _asking() as client:
        while not _answers(client, url):
            child.check()
            if time.monotonic() > end:
                raise ChildError(f"the server of {url}", 0, f"not healthy in time; see {child.log_path}")
            time.sleep(0.3)


def _asking() -> httpx.Client:
    """Return a client for as many questions as it takes: to make one takes as long as a hundred of them."""
    return httpx.Client(timeout=2)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.TransportError:
        return False
