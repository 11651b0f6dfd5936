"""A command's own Prefect server ends with the command, whatever ends the command."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.errors import ServerError, SpecError
from infra.engines.managed import free_port
from infra.server import up as prefect_up
from infra.server.api import prefect_api

COMMAND = """
import time
from infra.server.api import prefect_api
with prefect_api(lambda line: print(line, flush=True)):
    time.sleep(600)
"""


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health", timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_command(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    env |= {"DEEPSPEC_DATA_DIR": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-c", COMMAND], env=env, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    url = command.stdout.readline().split()[-1]
    assert answers(url)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    end = time.monotonic() + 60
    while answers(url) and time.monotonic() < end:
        time.sleep(0.2)
    assert not answers(url)


@contextmanager
def listening() -> Iterator[str]:
    """Something that answers, though it knows no page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


def test_a_configured_server_is_used() -> None:
    said: list[str] = []
    with listening() as url, temporary_settings({PREFECT_API_URL: url}), prefect_api(said.append):
        assert said == []


def test_a_configured_server_that_is_gone_is_one_line() -> None:
    with listening() as url:
        pass
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(SpecError, match=r"no Prefect server answers at .* take the name back"),
        prefect_api(print),
    ):
        pass


def test_a_server_that_goes_away_meanwhile_is_one_line() -> None:
    with (
        listening() as url,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ServerError, match=r"does not answer any more \(refused\); the same command goes on"),
        prefect_api(print),
    ):
        raise httpx.ConnectError("refused")


def test_two_commands_start_their_servers_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would make the tables of one new database; once a server is healthy, the next may start."""
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))

    def is_free() -> bool:
        with (tmp_path / "server.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    seen: list[bool] = []

    @contextmanager
    def started(*command: object, **told: object) -> Iterator[None]:
        seen.append(is_free())
        yield

    monkeypatch.setattr(prefect_up, "start_guarded", started)
    monkeypatch.setattr(prefect_up, "_wait", lambda child, url: seen.append(is_free()))
    with prefect_up.server(free_port(), tmp_path):
        assert seen == [False, False]
        assert is_free()


def test_what_needs_no_server_is_done_while_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    seen: list[str] = []

    @contextmanager
    def started(*command: object, **told: object) -> Iterator[None]:
        seen.append("started")
        yield

    monkeypatch.setattr(prefect_up, "start_guarded", started)
    monkeypatch.setattr(prefect_up, "_wait", lambda child, url: seen.append("healthy"))
    with prefect_up.server(free_port(), tmp_path, lambda: seen.append("meanwhile")):
        assert seen == ["started", "meanwhile", "healthy"]
