"""`deepspec up`: refused where others could reach it without a password, whole after a loss, gone after `down`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from cli import main as cli
from infra.engines.managed import free_port
from tests.given.apart import ROOT
from tests.given.server.operated import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AUTH = "ops:4711"
ALERT = '{"draft": "deepspec.draft.abc", "evidence": {"regressions": ["gsm8k: 1.31, was 1.38"]}}'


def test_a_server_for_others_needs_a_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["deepspec", "up", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "set PREFECT_SERVER_API_AUTH_STRING=user:password first" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.soak
def test_a_server_with_a_password_has_a_worker_that_comes_back_and_ends_with_down(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    gone = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    rest = {key: value for key, value in os.environ.items() if key not in gone}
    env = {**rest, "HOME": str(tmp_path), "DEEPSPEC_DATA_DIR": str(tmp_path), "PREFECT_SERVER_API_AUTH_STRING": AUTH}

    def run(*words: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], env={**env, **more}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("cli.main", "up", "--detach", "--host", "0.0.0.0", "--port", str(port))
    try:
        assert f"export PREFECT_API_URL={api}" in said
        assert AUTH not in said
        assert httpx.post(f"{api}/flows/filter", json={}, timeout=60).status_code == 401
        assert httpx.get(f"http://127.0.0.1:{port}/ui-settings", timeout=60).json()["api_url"] == "/api"
        (lost,) = until(lambda: workers_in(tmp_path))
        os.kill(lost.pid, signal.SIGKILL)
        until(lambda: [found for found in workers_in(tmp_path) if found.pid != lost.pid])
        client = {"PREFECT_API_URL": api, "PREFECT_API_AUTH_STRING": AUTH}
        run("prefect", "deployment", "run", "alert/local", "--params", ALERT, "--watch", **client)
        assert "alert-deepspec.draft.abc" in run("cli.main", "runs", COLUMNS="200")
    finally:
        assert "stopped" in run("cli.main", "down")
    until(lambda: not processes_in(tmp_path), seconds=60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{api}/health")
    assert not (tmp_path / "up.json").exists()


def processes_in(data: Path) -> list[psutil.Process]:
    """Return the processes that have this data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEEPSPEC_DATA_DIR") == str(data) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def workers_in(data: Path) -> list[psutil.Process]:
    """Return the workers among them, without their guards."""
    words = [(process, process.cmdline()) for process in processes_in(data)]
    return [process for process, told in words if "worker" in told and "guard.py" not in " ".join(told)]
