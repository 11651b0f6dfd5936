"""What the client of `serve-bench` takes for itself: time of the processor for a piece that an engine streams.

python -m pytest -m bench tests/benchmarks/bench_serving.py -s
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE, Popen

import pytest

from deepspec.placement import Endpoint
from deepspec.serving.client import Request, ServingClient
from deepspec.serving.levels import Load, closed

pytestmark = pytest.mark.bench

PIECES, LOAD, ANSWERS = 400, 16, 8
GOAL = 100e-6
"""Seconds of the processor for a piece, all that the client does for its answer included."""

_CHOICE = {"index": 0, "text": " hello", "logprobs": None, "finish_reason": None}
_PIECE = json.dumps(
    {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "target", "choices": [_CHOICE]}
)
_LAST = json.dumps({"choices": [], "usage": {"completion_tokens": PIECES, "prompt_tokens": 2}})

ENGINE = f"""
import asyncio
piece, last = {_PIECE!r}, {_LAST!r}

def chunk(text):
    data = f"data: {{text}}\\n\\n".encode()
    return b"%x\\r\\n" % len(data) + data + b"\\r\\n"

async def answer(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    if head.startswith(b"GET"):
        writer.write(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    else:
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n")
        writer.write(b"Transfer-Encoding: chunked\\r\\n\\r\\n")
        for _ in range({PIECES}):
            writer.write(chunk(piece))
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.write(chunk(last) + b"0\\r\\n\\r\\n")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def engine() -> Iterator[Endpoint]:
    """Yield an engine in a process of its own, so that what it takes is not counted."""
    child = Popen([sys.executable, "-c", ENGINE], stdout=PIPE, stderr=DEVNULL, text=True)
    assert child.stdout is not None
    try:
        yield Endpoint(url=f"http://127.0.0.1:{int(child.stdout.readline())}/v1", model="target")
    finally:
        child.terminate()
        child.wait()


def test_a_piece_costs_the_client_little() -> None:
    async def spent(endpoint: Endpoint) -> float:
        async with ServingClient(endpoint) as client:
            requests = [Request(prompt=[1, 2], max_tokens=PIECES)] * ANSWERS
            await closed(client.ask, Load(requests=requests[:LOAD], at_once=LOAD))
            start = time.process_time()
            answers = await closed(client.ask, Load(requests=requests, at_once=1))
            begun = time.process_time() - start
            assert {each.tokens for each in answers} == {PIECES}
            return begun / ((ANSWERS + 1) * PIECES)

    with engine() as endpoint:
        seconds = asyncio.run(spent(endpoint))
    print(f"the client of serve-bench: {1e6 * seconds:.0f} µs of the processor for a piece (goal {1e6 * GOAL:.0f})")
    assert seconds < GOAL
