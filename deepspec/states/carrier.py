"""A carrier: it stands before an engine on the engine's machine, and leaves each file of states in a depot.

Whoever asks it needs no folder in common with the engine. An answer goes back once its states are in the store, with
their URI in place of the path, or why there are none: it may have cost more than they. All else passes as it is.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from deepspec.depots.depot import Depot
from deepspec.engines.client import label
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError, FullDiskError, RefusedError, StoreError
from deepspec.states.file import delete, written
from deepspec.states.place import FAILED, FULL, PATH, REFUSED
from deepspec.states.staging import PREFIX, sweep
from deepspec.states.stored import FOLDER

KEPT_SECONDS = 3600.0
"""After which states that nobody took are deleted: whoever asked for them is dead."""
LOOK_SECONDS = 60.0
LARGEST_REQUEST = 1 << 27
_PASSED = ("Authorization", "Content-Type", "Retry-After")
"""Headers that pass."""


class Carrier:
    """What answers in an engine's place.

    Args:
        engine: its URL, up to /v1.
        store: where states go.
        tell: hears, once each, of what the store refuses for good: who started the carrier can mend it.
    """

    def __init__(self, engine: str, store: Depot, tell: Callable[[str], object] = str) -> None:
        """Carry nothing yet."""
        self._tell, self._told = tell, set[str]()
        self._engine, self._store, self._label = engine.rstrip("/").removesuffix("/v1"), store, label(engine)
        self._swept: set[Path] = set()
        self.carried = 0
        """Files."""

    def app(self) -> web.Application:
        """Return the server."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.cleanup_ctx.append(self._running)
        return app

    def sweep(self) -> int:
        """Delete states that nobody took in time, of this carrier or of one before it; return how many."""
        old = [
            key
            for key, found in self._store.entries(FOLDER).items()
            if PREFIX in key and time.time() - found.modified > KEPT_SECONDS
        ]
        for key in old:
            self._store.delete(key)
        return len(old)

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as self._session:
            sweeping = asyncio.create_task(self._sweep())
            yield
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.sweep)
            except StoreError as error:  # tried again
                self._say(error)
            await asyncio.sleep(LOOK_SECONDS)

    def _say(self, error: Exception) -> None:
        """Tell of a fault that stays until somebody mends it, once for each cause."""
        cause = repr(error.__cause__)
        if isinstance(error, RefusedError) and cause not in self._told:
            self._told.add(cause)
            self._tell(str(error))

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            status, headers, body = await self._asked(request)
        except aiohttp.ClientError as error:
            return _failed(502, f"the engine behind this carrier does not answer: {error}")
        if status == 200 and request.method == "POST":
            body = await self._with_uri(body)
        return web.Response(status=status, headers=headers, body=body)

    async def _asked(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        url, data = f"{self._engine}{request.path_qs}", await request.read()
        passed = _passed(request.headers)
        async with self._session.request(request.method, url, data=data, headers=passed) as reply:
            return reply.status, _passed(reply.headers), await reply.read()

    async def _with_uri(self, body: bytes) -> bytes:
        """Return a reply whose states, if it has any, are in the store; else it says why they are not."""
        try:
            reply = json.loads(body)
            told = dict(reply["kv_transfer_params"])
            named = told.pop(PATH)
        except (ValueError, KeyError, TypeError):  # it names none
            return body
        if not isinstance(named, str):
            return body
        try:
            told[PATH] = await self._carry(named)
        except (AskError, EngineError, StoreError) as error:
            told[FAILED], told[REFUSED] = str(error), isinstance(error, RefusedError)
            told[FULL] = isinstance(error, FullDiskError)
            self._say(error)
        return json.dumps({**reply, "kv_transfer_params": told}).encode()

    async def _carry(self, named: str) -> str:
        path = Path(named)
        if PREFIX not in path.name or path.suffix != ".safetensors" or not path.is_absolute():
            raise EngineError(f"engine {self._label} names {named[:200]!r} as a file of states, and it is none of ours")
        key = f"{FOLDER}/{path.name}"
        try:
            await written(path, self._label)
            await asyncio.to_thread(self._store.put_file, path, key)
        finally:
            delete(path, self._label)
        if path.parent not in self._swept:
            self._swept.add(path.parent)
            await asyncio.to_thread(sweep, path.parent)
        self.carried += 1
        return self._store.uri(key)


def _passed(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: headers[name] for name in _PASSED if name in headers}


def _failed(status: int, why: str) -> web.Response:
    return web.json_response({"error": {"message": why}}, status=status)
