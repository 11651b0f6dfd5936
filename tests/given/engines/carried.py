"""A carrier before an engine, in a thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from deepspec.depots.depot import Depot
from deepspec.placement import Endpoint
from deepspec.states.carrier import Carrier
from tests.given.engines.states import Served


@contextmanager
def carrying(engine: Served, store: Depot, tell: Callable[[str], object] = str) -> Iterator[Endpoint]:
    """Yield the endpoint of a carrier before an engine."""
    loop, runner = (
        asyncio.new_event_loop(),
        web.AppRunner(Carrier(engine.endpoint.url, store, tell).app(), access_log=None),
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield Endpoint(url=f"http://127.0.0.1:{port}/v1", model="tiny")
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
