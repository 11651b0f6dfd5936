"""A small engine over loopback: it streams as real ones do, tells what it drafts as they do, and has their faults."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from aiohttp import web

from deepspec.placement import Endpoint

PROPOSED = 3
"""Tokens that it drafts in each round."""


@dataclass
class Fake:
    """How it behaves, and what it counted."""

    kind: str = "llama.cpp"
    """llama.cpp, SGLang: told with each answer; vLLM: in counters; other: nothing is told."""
    old: bool = False
    """Whether an SGLang has its gauge alone, as older ones do."""
    accepts: int = 1
    """Drafted tokens that it accepts in each round."""
    by_turn: tuple[int, ...] = ()
    """The same for each answer in turn; empty: `accepts` for all."""
    options: dict[str, Any] = field(default_factory=dict)
    """With which an SGLang was started, as it tells them."""
    drafts: bool = True
    stops: bool = False
    """Whether a drafted token ends the answer, where one can: that round makes none of the target's own."""
    text: str = "a"
    """Of each token."""
    width: int = 8
    """Hidden size that it tells."""
    cached: int = 0
    """Prompt tokens that each answer found in a cache."""
    resets_at: int = -1
    """Number of the answer at which its counters begin anew."""
    dies_at: tuple[int, ...] = ()
    """Numbers of the answers that it breaks off in the middle."""
    answers: int = 0
    counted: list[int] = field(default_factory=lambda: [50, 150, 50])
    """Rounds, drafted and accepted tokens so far."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """What it was asked."""
    open: int = 0
    most_open: int = 0

    def told_of_model(self) -> dict[str, Any]:
        meta = {"meta": {"n_embd": self.width}} if self.kind == "llama.cpp" else {}
        return {"data": [{"id": "target", **meta}]}

    def metrics(self) -> str:
        if self.kind == "SGLang":
            return f'sglang:spec_accept_length{{model_name="target"}} {2.5 if self.drafts else 0.0}\n'
        if self.kind != "vLLM" or not self.drafts:
            return "vllm:num_requests_running 0\n"
        rounds, drafted, accepted = self.counted
        positions = "".join(
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{k}"}} '
            f"{rounds if k < self.accepts else 0}.0\n"
            for k in range(PROPOSED)
        )
        names = (("drafts", rounds), ("draft_tokens", drafted), ("accepted_tokens", accepted))
        return positions + "".join(f'vllm:spec_decode_num_{name}_total{{engine="0"}} {n}.0\n' for name, n in names)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        number, self.answers = self.answers, self.answers + 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._stream(request, number, body["max_tokens"])
        finally:
            self.open -= 1

    async def _stream(self, request: web.Request, number: int, tokens: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        rounds, made, accepted = 0, 1, 0
        by_accepted = [0] * (PROPOSED + 1)
        accepts = self.by_turn[number % len(self.by_turn)] if self.by_turn else self.accepts
        await _send(response, [self._piece()])
        while made < tokens:
            if number in self.dies_at:
                assert request.transport is not None
                request.transport.close()
                return response
            most = accepts if self.drafts else 0
            ends = self.stops and tokens - made <= most
            kept, own = (tokens - made, 0) if ends else (min(most, tokens - made - 1), 1)
            rounds, made, accepted = rounds + 1, made + kept + own, accepted + kept
            by_accepted[kept] += 1
            await _send(response, [self._piece()] * (kept + own))
            await asyncio.sleep(0)
        self._count(number, rounds, accepted)
        if self.kind == "SGLang" and self.drafts and not self.old:
            told = {
                "spec_verify_ct": rounds, "spec_num_correct_drafts": accepted,
                "spec_num_proposed_drafts": PROPOSED * rounds, "spec_correct_drafts_histogram": by_accepted,
            }  # fmt: skip
            await _send(response, [{"choices": [], "usage": None, "sglext": {"spec_tokens_details": told}}])
        await _send(response, [self._last(tokens, rounds, accepted)])
        await response.write(b"data: [DONE]\n\n")
        return response

    def _count(self, number: int, rounds: int, accepted: int) -> None:
        if number == self.resets_at:
            self.counted = [0, 0, 0]
        for place, more in enumerate((rounds, PROPOSED * rounds, accepted)):
            self.counted[place] += more

    def _piece(self) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": self.text, "finish_reason": None}]}

    def _last(self, tokens: int, rounds: int, accepted: int) -> dict[str, Any]:
        usage = {"completion_tokens": tokens, "prompt_tokens": 2}
        if self.kind != "llama.cpp":
            return {"choices": [], "usage": usage}
        drafted = {"draft_n": PROPOSED * rounds, "draft_n_accepted": accepted} if self.drafts else {}
        timings = {"cache_n": self.cached, "predicted_ms": 100.0, **drafted}
        return {"choices": [{"text": "", "finish_reason": "length"}], "usage": usage, "timings": timings}


@contextmanager
def serving(fake: Fake) -> Iterator[Endpoint]:
    """Yield the endpoint of an engine that runs while the block does."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(_app(fake), shutdown_timeout=0.1)

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(begin())
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield Endpoint(url=f"http://127.0.0.1:{port}/v1", model="target")
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _app(fake: Fake) -> web.Application:
    async def models(_: web.Request) -> web.Response:
        return web.json_response(fake.told_of_model())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=fake.metrics())

    def told(key: str, value: str) -> Any:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response({key: value, **fake.options})

        return answer

    app = web.Application()
    app.router.add_post("/v1/completions", fake.answer)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/metrics", metrics)
    paths = {
        "llama.cpp": ("/props", "build_info"),
        "vLLM": ("/version", "version"),
        "SGLang": ("/get_server_info", "version"),
    }
    if fake.kind in paths:
        path, key = paths[fake.kind]
        app.router.add_get(path, told(key, "7"))
    return app


async def _send(response: web.StreamResponse, pieces: list[dict[str, Any]]) -> None:
    await response.write(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in pieces))
