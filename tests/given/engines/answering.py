"""A simulated engine: a real HTTP server whose speed, answers and faults a test decides.

In a thread of the test (`serve`), or in a process that can be killed: `python -m tests.given.engines.answering PORT …`.
Its answers are a function of what is asked, so that two runs can be compared. Faults strike only questions whose last
message begins with "row", so that preflight passes.
"""

import argparse
import asyncio
import hashlib
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

GREEDY = {"temperature": 0.0, "top_k": 1, "min_p": 1.0}


def never(number: int, text: str) -> str | None:
    return None


@dataclass
class Simulated:
    """One engine."""

    model: str = "tiny"
    owner: str = "vllm"
    slots: int = 8
    """Requests worked on at a time; more wait."""
    seconds: float = 0.0
    """Work per request."""
    uneven: bool = False
    """Whether requests take between nothing and twice that."""
    queue: int | None = None
    """Requests that may wait; more get 429. None: any number."""
    fault: Callable[[int, str], str | None] = never
    """(number of the row question, its text) -> name of a fault, or None."""
    everywhere: str | None = None
    """Name of a fault of every question, those of the preflight too."""
    ignores: frozenset[str] = frozenset()
    """Parameters without effect."""
    refuses: frozenset[str] = frozenset()
    """Parameters that give 400."""
    answer: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Request -> message, instead of the usual text."""
    stop: Any = "stop"
    """What it calls the end of an answer that the target ended."""
    template_tokens: int = 5
    """Added to the words of a prompt."""
    render: Callable[[Mapping[str, Any]], Sequence[int]] | None = None
    """Chat request -> token ids of its prompt, instead of words and `template_tokens`."""
    window: int | None = None
    """Tokens of a prompt that it reads: of a longer one it says nothing, and reads as many."""
    counts_prompts: bool = True
    takes_ids: bool = False
    """Whether prompts may come as token ids."""
    breaks_on_ids: bool = False
    """Whether it fails over these, as one that never heard of them."""
    keep_bodies: bool = True
    key: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    working: int = 0
    waiting: int = 0
    most_working: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def row_bodies(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if text_of(body).startswith("row")]

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        if self.takes_ids:
            app.router.add_post("/v1/completions", self.chat)
        app.router.add_get("/health", self.health)
        self.slot = asyncio.Semaphore(self.slots)
        self.killed = asyncio.Event()
        return app

    async def models(self, request: web.Request) -> web.StreamResponse:
        if refused := self._unauthorised(request):
            return refused
        return web.json_response({"object": "list", "data": [{"id": self.model, "owned_by": self.owner}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if refused := self._unauthorised(request):
            return refused
        body = json.loads(await request.read())
        if self.keep_bodies:
            self.bodies.append(body)
        if strange := self.refuses & body.keys():
            return web.json_response({"error": {"message": f"unknown field {min(strange)}"}}, status=400)
        if self.queue is not None and self.waiting >= self.queue:
            return web.json_response({"error": {"message": "busy"}}, status=429, headers={"Retry-After": "0.1"})
        self.waiting += 1
        async with self.slot:
            self.waiting -= 1
            self.working += 1
            self.most_working = max(self.most_working, self.working)
            try:
                await asyncio.sleep(self.seconds * (random.uniform(0, 2) if self.uneven else 1))
                return await self._respond(request, body)
            finally:
                self.working -= 1

    def _unauthorised(self, request: web.Request) -> web.StreamResponse | None:
        given = request.headers.get("Authorization", "")
        if self.key and given != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"bad key: {given}"}}, status=401)
        return None

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _respond(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        text = text_of(body)
        name = "500" if self.breaks_on_ids and "prompt" in body else self.everywhere
        if text.startswith("row"):
            name = self.fault(self.rows, text)
            self.rows += 1
        if name is None:
            return web.json_response(self._completion(body))
        self.faults[name] += 1
        response: web.StreamResponse = await FAULTS[name](self, request, body)
        return response

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        message = dict(self.answer(body) if self.answer else {"role": "assistant", "content": self._text(body)})
        words = len((message.get("content") or "").split())
        finish_reason = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else self.stop)
        if body["max_tokens"] == 1 and "max_tokens" not in self.ignores:  # as preflight asks
            message["content"], words, finish_reason = "answer", 0, "length"
        said = {"text": message["content"]} if "prompt" in body else {"message": message}
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, **said}
        if body.get("return_token_ids"):
            choice["token_ids"] = list(range(words + 1))
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"id": number, "token": "x"} for number in range(words + 1)]}
        counted = min(self._prompt_tokens(body), self.window or 1 << 30) if self.counts_prompts else 0
        return {"choices": [choice], "usage": {"prompt_tokens": counted, "completion_tokens": words + 1}}

    def _prompt_tokens(self, body: Mapping[str, Any]) -> int:
        if "prompt" in body:
            return len(body["prompt"])
        if self.render is not None:
            return len(self.render(body))
        return sum(len(message["content"].split()) for message in body["messages"]) + self.template_tokens

    def _text(self, body: Mapping[str, Any]) -> str:
        heeded = {name: value for name, value in body.items() if name not in self.ignores}
        greedy = any(heeded.get(name) == value for name, value in GREEDY.items()) or heeded.get("top_p", 1) < 0.01
        seed = None if greedy else heeded.get("seed")
        penalties = [heeded.get(name) for name in ("repetition_penalty", "repeat_penalty", "presence_penalty")]
        asked = json.dumps([body["prompt"] if "prompt" in body else body["messages"], seed, penalties])
        return f"{hashlib.sha256(asked.encode()).hexdigest()[:12]} answered"


def text_of(body: Mapping[str, Any]) -> str:
    """Return what was said last; nothing of token ids."""
    return "" if "prompt" in body else str(body["messages"][-1]["content"])


async def _hang(engine: Simulated, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
    await engine.killed.wait()
    return web.Response()


async def _cut(engine: Simulated, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
    """Send half of the bytes that were promised, then close the connection."""
    data = json.dumps(engine._completion(body)).encode()
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


def _text_fault(data: bytes) -> Any:
    async def respond(engine: Simulated, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        return web.Response(body=data, content_type="application/json")

    return respond


def _reason_fault(reason: Any) -> Any:
    """End an answer with another reason."""

    async def respond(engine: Simulated, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        completion = engine._completion(body)
        completion["choices"][0]["finish_reason"] = reason
        return web.json_response(completion)

    return respond


def _status_fault(status: int, message: str, headers: Mapping[str, str] | None = None) -> Any:
    async def respond(engine: Simulated, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=status, headers=headers)

    return respond


FAULTS: Mapping[str, Any] = {
    "hang": _hang,
    "cut": _cut,
    "not json": _text_fault(b'{"choices": [{"index": 0, "mess'),
    "no choices": _text_fault(b'{"choices": [], "usage": {}}'),
    "null": _text_fault(b'{"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": null}}]}'),
    "list": _text_fault(b"[1, 2]"),
    "abort": _text_fault(
        b'{"choices": [{"finish_reason": "abort", "message": {"role": "assistant", "content": "half an ans"}}]}'
    ),
    "half a character": _text_fault(
        b'{"choices": [{"finish_reason": "length", "message": {"role": "assistant", "content": "smile \\ud83d"}}]}'
    ),
    "unknown reason": _reason_fault("gave_up"),
    "no reason": _reason_fault(None),
    "filtered": _reason_fault("content_filter"),
    "error in 200": _text_fault(b'{"error": {"message": "upstream is gone", "code": 502}}'),
    "html": _text_fault(b"<html>bad gateway</html>"),
    "500": _status_fault(500, "out of memory"),
    "429": _status_fault(429, "too many", {"Retry-After": "0.3"}),
    "quota": _status_fault(429, "daily quota", {"Retry-After": "86400"}),
    "warming up": _status_fault(503, "loading", {"Retry-After": "0.1"}),
    "400": _status_fault(400, "prompt of 9000 tokens is too long for 4096"),
    "404": _status_fault(404, "no such model"),
}


class Server:
    """A thread that serves an engine, and can stop as if it were killed and start again on the same port."""

    def __init__(self, engine: Simulated) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        self._do(self._start())

    def kill(self) -> None:
        self._do(self._kill())

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._runner = web.AppRunner(self.engine.app(), access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.engine.port))
        self.engine.port = listening.getsockname()[1]
        await web.SockSite(self._runner, listening).start()

    async def _kill(self) -> None:
        self.engine.killed.set()
        server = self._runner.server
        for connection in list(server.connections) if server else []:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()


@contextmanager
def serve(*engines: Simulated) -> Iterator[list[Server]]:
    servers = [Server(engine) for engine in engines]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    engine = Simulated(slots=arguments.slots, seconds=arguments.seconds, keep_bodies=False)
    web.run_app(engine.app(), host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
