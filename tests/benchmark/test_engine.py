"""Acceptance as an engine tells it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from deepspec.artifacts import Endpoint
from deepspec.errors import EngineError
from deepspec.evaluate.engine import Answer, ask_engine, summarise
from deepspec.formats.scores import Interval


class Engine(BaseHTTPRequestHandler):
    """Answers with 9 tokens, 4 of 8 drafted ones accepted; without a draft when asked for model `plain`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        drafts = {} if asked["model"] == "plain" else {"draft_n": 8, "draft_n_accepted": 4}
        told = {"usage": {"completion_tokens": 9}, "timings": {"predicted_ms": 100.0, **drafts}}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Engine)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_rounds_are_tokens_less_the_first_less_the_accepted(url: str):
    found = ask_engine(Endpoint(url=url, model="pair"), ["a", "b"], max_tokens=9)
    assert found.accepted_length.value == pytest.approx(8 / 4)  # 9 − 1 − 4 = 4 rounds made 8 tokens
    assert found.accept_rate == pytest.approx(0.5)
    assert found.tokens_per_second == pytest.approx(90)


def test_an_engine_without_a_draft_is_refused(url: str):
    with pytest.raises(EngineError, match="tells nothing about drafts"):
        ask_engine(Endpoint(url=url, model="plain"), ["a"], max_tokens=9)


def test_an_engine_that_is_not_there_is_named():
    with pytest.raises(EngineError, match=r"engine http://127\.0\.0\.1:9/v1"):
        ask_engine(Endpoint(url="http://127.0.0.1:9/v1", model="pair"), ["a"], max_tokens=9)


def test_agreement_is_an_overlap_of_intervals():
    answers = [Answer(tokens=n + 1, drafted=20, accepted=n - 10, seconds=1.0) for n in (12, 14, 16, 18, 20)]
    found = summarise(answers)  # 10 rounds each: accepted lengths 1.2 to 2.0
    assert found.accepted_length.value == pytest.approx(1.6)
    assert found.agrees_with(Interval(value=1.7, low=1.5, high=1.9))
    assert not found.agrees_with(Interval(value=2.5, low=2.3, high=2.7))
