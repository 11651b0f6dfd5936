"""A Prefect server for the tests of a room, and what it tells."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.logging.handlers import APILogWorker

from infra.engines.managed import free_port
from infra.server.up import server
from tests.given.server.operated import ask


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    old = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    try:
        with server(free_port(), home) as url:
            yield url
            APILogWorker.drain_all(timeout=5)
    finally:
        os.environ.pop("PREFECT_HOME")
        if old is not None:
            os.environ["PREFECT_HOME"] = old


def query(api: str, what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one of the server's filters."""
    rows: list[dict[str, Any]] = ask("POST", f"{api}/{what}/filter", body)
    return rows
