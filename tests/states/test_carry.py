"""`deepspec carry-states` refuses what it cannot stand before, or listen on, in one line."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.errors import SpecError

ENGINE = "http://127.0.0.1:1/v1"


def refused(*words: str) -> str:
    result = CliRunner().invoke(app, ["carry-states", *words])
    assert isinstance(result.exception, SpecError), result.output
    return str(result.exception)


def test_an_engine_that_is_no_url_is_refused(tmp_path: Path) -> None:
    for engine in ("nonsense", "", "ftp://host/v1"):
        assert "ENGINE: an endpoint's URL is not one; wanted http://HOST:PORT/v1" in refused(engine, "--root", "store")
    assert "--root is empty" in refused(ENGINE, "--root", "")


def test_an_address_that_cannot_be_listened_on_is_one_line(tmp_path: Path) -> None:
    root = ("--root", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: " in refused(ENGINE, *root, "--port", port)
    assert "; give another --host or --port" in refused(ENGINE, *root, "--host", "256.0.0.1")


@pytest.mark.parametrize("port", ["-5", "0", "65536"])
def test_a_port_is_one(tmp_path: Path, port: str) -> None:
    assert CliRunner().invoke(app, ["carry-states", ENGINE, "--root", str(tmp_path), "--port", port]).exit_code == 2
