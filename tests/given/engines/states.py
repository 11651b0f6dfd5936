"""A small server that speaks as vLLM does with our connector: the tiny target, its files, its locks, and its faults.

Its answer to a conversation is what was said last, backwards, in the target's tokens; states are those of the target.
"""

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from aiohttp import web
from safetensors.torch import save_file

from deepspec.placement import Endpoint
from deepspec.states.digest import digest_of
from deepspec.states.file import states_checksum
from deepspec.states.wanted import FORMAT, VERSION
from deepspec.target.load import Target, load_target
from tests.given.targets.tiny import IM_END

VERSION_SERVED = "0.32.0"
LONGEST = 400
COMPUTES = threading.Lock()
"""Servers of one process share a model, whose layers are listened to: one computes at a time."""


@dataclass
class Served:
    """What the server serves, and what is wrong with it. Faults may be set while it runs."""

    folder: Path
    """Where it writes."""
    target: Path
    layer_ids: tuple[int, ...] = (0, 2, 4, 6)
    dtype: str = "float32"
    told: dict[str, str] = field(default_factory=dict)
    """Metadata that differ from the truth."""
    shift: int = 0
    """Layers are taken so many further than asked for."""
    norm: bool = False
    """The last state is given after the norm."""
    weights: Path | None = None
    """Another target that computes, while this one is told."""
    connector: bool = True
    lock: str = "freed"
    """freed: with the file; held: never freed; dead: freed with no file; none: no lock and no file."""
    spoil: str = ""
    """ids, shape, bytes, nan, full, cast: what is wrong with the file."""
    fail_at: set[int] = field(default_factory=set)
    """Requests that fail with 500, by their number."""
    told_later: tuple[int, dict[str, str]] | None = None
    """After so many answers these metadata are told."""
    redirect: str = ""
    """Names this file instead of its own."""
    requests: int = 0
    files: int = 0
    """That were promised."""
    dies_at: int | None = None
    """Answers after which files are no longer written, though 200 is said."""
    delay: float = 0.0
    """Seconds until a request is answered."""
    say: Callable[[list[dict[str, Any]]], str] = lambda messages: messages[-1]["content"][::-1]
    """What it answers to messages, in tokens of the target: a call of a tool is the text that the target writes."""
    calls: Callable[[str], dict[str, Any]] = lambda text: {"content": text}
    """What it makes of an answer's text in a message."""
    tells_stop: bool = True
    """Whether the stop token is among the ids of an answer."""
    drift: float = 0.0
    """What is added to the states of tokens that it generated, while it answers."""
    draws_at: float | None = None
    """Temperature at which it draws, whatever it is asked for; None: as it is asked."""
    salts: list[str] = field(default_factory=list)
    """With which it was told to take nothing that it remembers."""
    answered: list[list[int]] = field(default_factory=list)
    """What was read for each answer."""
    rate: float = 0.0
    """Tokens a second at most, one request after another, those of clients that are gone left out; 0: as it comes."""
    read: list[tuple[int, float]] = field(default_factory=list)
    """Tokens of each request at that rate, and the seconds that it took."""
    asked: list[list[int]] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    """When, by the monotonic clock."""
    names: list[str] = field(default_factory=list)
    most_bytes: int = 0
    """Of the states that were being asked for at one time."""
    port: int = 0
    start_seconds: float = 0.0
    """How long a run waits for it, as for one of its own."""

    def __post_init__(self) -> None:
        self.model = loaded(self.weights or self.target, self.dtype)
        self._pool = ThreadPoolExecutor(1)
        self.turn: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        self._held: list[int] = []
        self._bytes = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=f"http://127.0.0.1:{self.port}/v1", model="tiny", start_seconds=self.start_seconds)

    @torch.no_grad()
    def compute(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states as the engine counts layers, `(T, n, D)`, and the log-probabilities of the next token."""
        with COMPUTES:
            return self._compute(ids)

    def _compute(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        captured: dict[int, torch.Tensor] = {}
        hooks = []
        layers = cast("torch.nn.ModuleList", self.model.decoder.layers)
        for number, layer in enumerate(layers):
            hooks.append(layer.register_forward_pre_hook(_before(captured, number), with_kwargs=True))
            hooks.append(layer.register_forward_hook(_after(captured, number + 1)))
        out = self.model.model(input_ids=torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        chosen = [min(each + self.shift, len(layers)) for each in self.layer_ids]
        states = torch.stack([captured[each] for each in chosen], dim=1)
        if self.norm:
            states[:, -1] = cast("torch.nn.Module", self.model.decoder.norm)(states[:, -1][None])[0]
        return states, out.logits[0, -1].float().log_softmax(-1)

    async def chat(self, request: web.Request) -> web.Response:
        """Answer a conversation, with the states of what was read where they are asked for."""
        body = await request.json()
        template, told = self.model.template, body["chat_template_kwargs"]
        ids = template.prompt_ids(body["messages"], thinking=told["enable_thinking"], tools=body.get("tools"))
        said = self.model.tokenizer.encode(self.say(body["messages"]), add_special_tokens=False)
        whole = [*said, IM_END]
        if body.get("ignore_eos"):
            whole = self.draw(ids, body["max_tokens"], body["temperature"])
        ended = len(whole) <= body["max_tokens"]
        given = whole[: body["max_tokens"]]
        text = self.model.tokenizer.decode(given[:-1] if ended else given)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", **self.calls(text)},
            "finish_reason": "stop" if ended else "length",
        }
        shown = given if self.tells_stop or not ended else given[:-1]
        choice["token_ids"] = shown
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(shown)}
        everything = body.get("kv_transfer_params", {}).get("include_output_tokens")
        read = [*ids, *shown[:-1]] if everything else ids
        self.answered.append(read)
        return await self._reply(body, read, len(ids), {"choices": [choice], "usage": usage})

    @torch.no_grad()
    def draw(self, ids: list[int], count: int, temperature: float) -> list[int]:
        """Return tokens that the target itself says, or those of another temperature where it draws wrongly."""
        chosen = temperature if self.draws_at is None else self.draws_at
        how = {"do_sample": True, "temperature": chosen, "top_k": 0, "top_p": 1.0} if chosen else {"do_sample": False}
        with COMPUTES, torch.random.fork_rng():
            torch.manual_seed(len(ids))
            model, prompt = self.model.model, torch.tensor([ids])
            told = model.generate(prompt, max_new_tokens=count, min_new_tokens=count, pad_token_id=IM_END, **how)
        return list(told[0, len(ids) :].tolist())

    async def complete(self, request: web.Request) -> web.Response:
        """Read tokens and say what comes next."""
        body = await request.json()
        self.asked_at.append(time.monotonic())
        self.salts += [body["cache_salt"]] if "cache_salt" in body else []
        return await self._reply(body, body["prompt"], len(body["prompt"]), None)

    async def _reply(
        self, body: dict[str, Any], ids: list[int], prompt: int, reply: dict[str, Any] | None
    ) -> web.Response:
        name = f"cmpl-{body.get('request_id', uuid4())}-0-abcd1234"
        self.requests += 1
        if self.requests in self.fail_at:
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if len(ids) > LONGEST:
            return web.json_response({"error": {"message": f"prompt is longer than {LONGEST} tokens"}}, status=400)
        if reply is None:
            self.asked.append(ids)
        self.files += 1
        number = self.files
        path = self.folder / f"{name}.safetensors"
        if self.lock != "none":
            held = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
        size = len(ids) * len(self.layer_ids) * 32 * 4
        self._bytes += size
        self.most_bytes = max(self.most_bytes, self._bytes)
        async with self.turn:
            states, following = await self._computed(ids)
        self._bytes -= size
        if reply is not None:
            states[prompt:] += self.drift
        if self.lock != "none":
            threading.Timer(0.002, self._write, (path, ids, states, held, number)).start()
        values, tokens = following.topk(5)
        tops = {f"token_id:{token}": value for token, value in zip(tokens.tolist(), values.tolist(), strict=True)}
        if reply is None:
            choice = {"text": "x", "finish_reason": "length", "logprobs": {"top_logprobs": [tops]}}
            reply = {"choices": [choice]}
        if self.connector:
            reply["kv_transfer_params"] = {"hidden_states_path": self.redirect or str(path)}
        self.names.append(str(path))
        return web.json_response(reply)

    async def _computed(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        await asyncio.sleep(self.delay)
        begin = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(self._pool, self.compute, ids)
        if self.rate:
            await asyncio.sleep(max(0.0, begin + len(ids) / self.rate - time.monotonic()))
            self.read.append((len(ids), time.monotonic() - begin))
        return found

    def _write(self, path: Path, ids: list[int], states: torch.Tensor, held: int, number: int) -> None:
        if self.lock == "held":
            self._held.append(held)
            return
        try:
            if self.lock != "dead" and not (self.dies_at is not None and number > self.dies_at):
                self._write_file(path, ids, states, number)
        finally:
            os.close(held)

    def _write_file(self, path: Path, ids: list[int], states: torch.Tensor, number: int) -> None:
        tokens = torch.tensor(ids)
        if self.spoil == "full":
            Path(f"{path}.error").write_text("OSError: [Errno 28] No space left on device")
            return
        if self.spoil == "ids":
            tokens = tokens + 1
        if self.spoil == "shape":
            states = states[:, :-1]
        if self.spoil == "nan":
            states[0, 1, 0] = float("nan")
        if self.spoil == "cast":
            states = states.bfloat16()
        states = states.contiguous()
        told = {
            "format": FORMAT,
            "version": VERSION,
            "engine": "vllm",
            "engine_version": VERSION_SERVED,
            "dtype": self.dtype,
            "quantization": "",
            "layer_ids": ",".join(map(str, self.layer_ids)),
            "model": digest_of(self.target),
            "crc32": states_checksum(states, tokens),
            **self.told,
            **(self.told_later[1] if self.told_later and number > self.told_later[0] else {}),
        }
        if self.spoil == "bytes":
            states[0, 0, 0] += 1
        unfinished = path.with_suffix(".tmp")
        save_file({"hidden_states": states, "token_ids": tokens}, unfinished, metadata=told)
        unfinished.replace(path)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny", "owned_by": "vllm"}]})

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": VERSION_SERVED})


@cache
def loaded(folder: Path, dtype: str) -> Target:
    return load_target(folder, dtype)


def _before(captured: dict[int, torch.Tensor], number: int) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> None:
        captured[number] = (args[0] if args else kwargs["hidden_states"])[0]

    return hook


def _after(captured: dict[int, torch.Tensor], number: int) -> Any:
    def hook(module: Any, args: Any, result: Any) -> None:
        captured[number] = (result[0] if isinstance(result, tuple) else result)[0]

    return hook


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve on loopback, in a thread, while the block runs."""
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/completions", served.complete)
    app.router.add_post("/v1/chat/completions", served.chat)
    app.router.add_get("/v1/models", served.models)
    app.router.add_get("/version", served.version)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=bool(served.rate))
    served.turn = asyncio.Lock() if served.rate else contextlib.nullcontext()

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", served.port)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    served.port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        for held in served._held:
            os.close(held)
