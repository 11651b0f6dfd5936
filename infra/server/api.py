"""The Prefect API that a command talks to: the configured one, that of `deepspec up`, or one that ends with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.errors import ServerError, SpecError
from infra.engines.managed import free_port
from infra.server.setup import client_settings
from infra.server.up import running_api, server
from infra.settings import data_dir

DRAIN_SECONDS = 5.0
PATIENCE_SECONDS = 10.0


def reached(api: str) -> str:
    """Return an API's URL, once something answers there.

    Raises:
        SpecError: nothing does.
    """
    try:
        httpx.get(f"{api.rstrip('/')}/health", timeout=PATIENCE_SECONDS)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise SpecError(
            f"no Prefect server answers at {api}, which PREFECT_API_URL names ({error}): start that one, or take the "
            "name back (unset PREFECT_API_URL; prefect config unset PREFECT_API_URL), and a command runs a server of "
            "its own"
        ) from error
    return api


@contextmanager
def prefect_api(say: Callable[[str], None], meanwhile: Callable[[], object] = str) -> Iterator[None]:
    """Make a Prefect API available while the block runs.

    Prefect's own embedded server outlives a parent that is killed; this one is under the guard.

    Args:
        say: told where to watch, where a server is started.
        meanwhile: called while one starts.

    Raises:
        SpecError: the configured one does not answer.
        ServerError: it does not any more.
    """
    if configured := PREFECT_API_URL.value():
        reached(configured)
        with _there(configured):
            yield
        return
    if url := running_api():
        with _there(url), temporary_settings(client_settings(url)):
            yield
        return
    with (
        server(free_port(), data_dir() / "logs", meanwhile) as url,
        _there(url),
        temporary_settings(client_settings(url)),
    ):
        say(f"watch this run: {url.removesuffix('/api')}")
        try:
            yield
        finally:  # what Prefect's threads still hold goes to the server while it is there
            APILogWorker.drain_all(timeout=DRAIN_SECONDS)
            EventsWorker.drain_all(timeout=DRAIN_SECONDS)


@contextmanager
def _there(api: str) -> Iterator[None]:
    """Say in one line that a server went away, where that ended the block: Prefect's own calls say it in a hundred.

    Raises:
        ServerError: it did.
    """
    try:
        yield
    except httpx.TransportError as error:
        raise ServerError(
            f"the Prefect server at {api} does not answer any more ({error}); the same command goes on from here"
        ) from error
