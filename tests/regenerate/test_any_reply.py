"""Whatever an engine replies to one prompt costs that prompt's row at most; the others are answered, the sum holds."""

import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepspec.messages.conversations import published_rows
from tests.given.engines.answering import Simulated, text_of
from tests.given.engines.prompts import Bench, prompt
from tests.regenerate.test_replies import replies

ROWS = [prompt("good", "row 1"), prompt("bad", "row bad"), prompt("turns", "row 2", "row bad"), prompt("last", "row 3")]

WAITS = (
    "dispatcher.FIRST_WAIT",
    "dispatcher.FIRST_PROBE",
    "dispatcher.LONGEST_PROBE",
    "dispatcher.DEFAULT_PAUSE",
    "wire.LONGEST_PAUSE",
)
"""Seconds that would be waited for real; nothing here depends on them."""


def answers(status: int, headers: dict[str, str], content: bytes) -> dict[str, dict[str, Any]]:
    """Return the rows by id where an endpoint replies so to the prompt `row bad`, over and over."""
    engine = Simulated()

    def reply(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "tiny", "owned_by": "vllm"}]})
        body = json.loads(request.content)
        if text_of(body) == "row bad":
            return httpx.Response(status, headers=headers, content=content)
        return httpx.Response(200, json=engine._completion(body))

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(reply), follow_redirects=True)

    room = "deepspec.engines"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(patch(f"{room}.client.openai.DefaultAioHttpClient", client))
        stack.enter_context(patch("deepspec.engines.patience.PATIENCE_SECONDS", math.inf))
        for wait in WAITS:
            stack.enter_context(patch(f"{room}.{wait}", 1e-4))
        bench = Bench(Path(folder))
        bench.spec = bench.spec.but(bad_share=1.0)
        artifact = bench.regenerate(bench.publish(ROWS), bench.placement("http://engine/v1", keep_errors=True))
        counts = artifact.counts
        assert counts["success"] + counts["error"] + counts["skipped"] == counts["input"] == len(ROWS)
        return {row["id"]: row for row in published_rows(artifact)}


headers = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "location", "content-encoding", "content-type"]),
    st.sampled_from(["1", "86400", "1e400", "-1", "http://engine/v1/models", "ftp://x", "gzip", "soon", "text/html"]),
    max_size=2,
)
contents = st.builds(lambda reply: json.dumps(reply).encode(), replies) | st.sampled_from(
    [b"", b"null", b"<html>", b"[" * 10_000, b'{"error": {"message": "[/docs] \\ud83d", "code": [429]}}', b"\xff" * 400]
)
statuses = st.just(200) | st.sampled_from([204, 301, 304, 400, 401, 404, 408, 413, 422, 429, 500, 503, 529, 599])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(status=statuses, headers=headers, content=contents)
@example(status=429, headers={"retry-after": "86400"}, content=b"")
@example(status=200, headers={"content-encoding": "gzip"}, content=b"no gzip")
@example(status=301, headers={"location": "http://engine/v1/chat/completions"}, content=b"")
@example(status=200, headers={}, content=b'{"error": {"message": "gone", "code": [429]}}')
@example(status=400, headers={}, content=b'{"error": {"message": "closing [/docs] \\ud83d"}}')
def test_whatever_an_engine_replies_each_row_ends_as_one_thing(
    status: int, headers: dict[str, str], content: bytes
) -> None:
    rows = answers(status, headers, content)
    assert (rows["good"]["status"], rows["last"]["status"]) == ("success", "success")
    for name in ("bad", "turns"):
        row = rows[name]
        assert row["status"] in ("success", "error")
        assert ("error" in row) == (row["status"] == "error")
        assert row["generated"] == ([] if "error" in row else [n for n, m in enumerate(row["messages"]) if n % 2])


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (400, b'{"error": {"message": "see [/docs]"}}', "refused"),
        (200, b"", "odd_answer"),
        (200, b'{"choices": [{"message": {"content": "\\ud83d"}, "finish_reason": "stop"}]}', "not_text"),
        (500, b"", None),
        (200, b'{"error": {"message": "gone", "code": 502}}', None),
        (200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}', None),
    ],
)
def test_only_what_the_next_run_would_meet_again_is_counted_as_the_rows_own(
    status: int, content: bytes, reason: str | None
) -> None:
    rows = answers(status, {}, content)
    assert rows["bad"]["status"] == "error"
    assert rows["bad"].get("reason") == reason
