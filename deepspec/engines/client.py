"""One endpoint: a client that asks, and says whose fault it is when there is no answer."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import openai

from deepspec.engines.failures import LONGEST_REASON, AskError
from deepspec.engines.wire import decoded, retry_after
from deepspec.placement import Endpoint

REFUSED = frozenset({400, 413, 422})
"""HTTP statuses that say that the request itself is wrong: asking again gives the same."""
TOO_MANY = 429
NAMED = "deepspec-"
"""How the name of a request begins, and so that of a file which an engine writes for it."""
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0


def label(url: str) -> str:
    """Return an endpoint's name for rows, tables and messages: host, port and path, never user or password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path}"


class Client:
    """A client of one endpoint.

    Args:
        endpoint: where it is and which model it serves.
        deadline: seconds after which a request is given up.
    """

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        """Make the client; nothing is sent yet."""
        self.model = endpoint.model
        self.label = label(endpoint.url)
        self._key = endpoint.api_key.get_secret_value() if endpoint.api_key else ""
        self._deadline = deadline
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._key or "none",  # the client wants one; engines without keys ignore it
            max_retries=0,
            timeout=openai.Timeout(deadline, connect=CONNECT_SECONDS),
            http_client=openai.DefaultAioHttpClient(),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def complete(self, prompt: list[int], extra: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to token ids, decoded.

        Args:
            prompt: token ids.
            extra: further fields of the request.

        Raises:
            AskError: there is none.
        """
        call = self._client.completions.with_raw_response.create
        return self._object(await self._call(call(model=self.model, prompt=prompt, extra_body=extra), self._deadline))

    async def chat(self, messages: Any, extra: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a conversation that the engine renders itself, decoded.

        Args:
            messages: the conversation.
            extra: further fields of the request.

        Raises:
            AskError: there is none.
        """
        call = self._client.chat.completions.with_raw_response.create
        raw = await self._call(call(model=self.model, messages=messages, extra_body=extra), self._deadline)
        return self._object(raw)

    async def served_models(self) -> dict[str, str]:
        """Return what the endpoint serves: name of a model -> `owned_by`, which names the engine.

        Raises:
            AskError: it does not answer, or not with a list of models.
        """
        raw = await self._call(self._client.models.with_raw_response.list(), PROBE_SECONDS)
        try:
            return {str(model["id"]): str(model.get("owned_by", "")) for model in decoded(raw)["data"]}
        except (KeyError, TypeError, AttributeError):
            raise AskError("/models is not a list of models", "engine") from None

    async def _call(self, call: Any, seconds: float) -> bytes:
        """Await a request; errors lose their chain, since it can hold the key."""
        try:
            async with asyncio.timeout(seconds):
                response = await call
                return bytes(response.content)
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":  # a refused connection comes as one, too
                raise AskError(self._clean(str(error.__cause__)), "engine") from None
            raise AskError(f"no answer within {seconds:g} s", "late") from None
        except TimeoutError:
            raise AskError(f"no answer within {seconds:g} s", "late") from None
        except openai.APIStatusError as error:
            pause = retry_after(error.response.headers)
            raise self._failure(str(error.message), error.status_code, pause) from None
        except openai.APIError as error:
            raise AskError(self._clean(f"{type(error).__name__}: {error}"), "engine") from None

    def _object(self, raw: bytes) -> dict[str, Any]:
        value = decoded(raw)
        if "error" in value and not value.get("choices"):  # as services say it that had sent their 200 before
            code = value["error"].get("code") if isinstance(value["error"], dict) else None
            status = code if isinstance(code, int) else 0
            raise self._failure(f"an error instead of an answer: {value['error']}", status, None)
        return value

    def _failure(self, told: str, status: int, pause: float | None) -> AskError:
        if status in REFUSED:
            return AskError(self._clean(told), "row", reason="refused")
        is_busy = status == TOO_MANY or pause is not None
        return AskError(self._clean(told), "busy" if is_busy else "engine", retry_after=pause)

    def _clean(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_REASON]
