"""What a run shows on the server outlives a server that is away, and a person who deletes it there."""

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prefect.artifacts import MarkdownArtifact
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.engines.managed import free_port
from tasks import shown
from tasks.shown import Shown
from tests.given.server.session import api, query  # noqa: F401 - a fixture


@pytest.fixture
def put(api: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:  # noqa: F811 - a fixture
    """Show a text under a key on a real server, or on one that is gone."""
    told = Shown()
    monkeypatch.setattr(shown, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(shown, "get_run_logger", lambda: logging.getLogger("run"))

    def tell(key: str, text: str, away: bool = False) -> None:
        where = f"http://127.0.0.1:{free_port()}/api" if away else api
        with temporary_settings({PREFECT_API_URL: where}):
            told.put(key, MarkdownArtifact(markdown=text))

    return tell


def texts(api: str, key: str) -> list[Any]:  # noqa: F811 - a fixture
    return [found["data"] for found in query(api, "artifacts", {"artifacts": {"key": {"any_": [key]}}})]


def test_a_server_that_was_away_hears_of_everything_once_it_is_there(
    api: str,  # noqa: F811 - a fixture
    put: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put("away-first", "one", away=True)
    put("away-second", "two", away=True)
    put("away-first", "three", away=True)
    assert texts(api, "away-first") == []
    assert [each.getMessage() for each in caplog.records if each.name == "run"] == [
        "the Prefect server does not answer: away-first not shown yet, the stage goes on"
    ]
    put("away-third", "four")
    assert [texts(api, f"away-{key}") for key in ("first", "second", "third")] == [["three"], ["two"], ["four"]]


def test_what_somebody_deleted_is_shown_anew(api: str, put: Callable[..., None]) -> None:  # noqa: F811
    put("deleted", "one")
    (found,) = query(api, "artifacts", {"artifacts": {"key": {"any_": ["deleted"]}}})
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        client.delete_artifact(found["id"])
    put("deleted", "two")
    assert texts(api, "deleted") == ["two"]


@pytest.mark.parametrize(("status", "tries"), [(413, 1), (422, 1), (429, 2), (500, 2), (503, 2)])
def test_what_is_refused_is_not_shown_again_and_what_is_too_early_is(
    put: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    asked: list[str] = []

    def answer(self: Shown, key: str, artifact: MarkdownArtifact) -> None:
        asked.append(key)
        if key == "refused":
            request = httpx.Request("POST", "http://127.0.0.1")
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))

    monkeypatch.setattr(Shown, "_tell", answer)
    put("refused", "one")
    put("taken", "two")
    assert asked.count("refused") == tries
    assert asked.count("taken") == (1 if tries == 1 else 0)
