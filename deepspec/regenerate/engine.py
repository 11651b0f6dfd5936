"""One endpoint: a client that asks, and says whose fault it is when there is no answer."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import openai

from deepspec.placement import Endpoint
from deepspec.regenerate.dialects import OTHER, body, ids_body
from deepspec.regenerate.question import LONGEST_REASON, Answer, AskError, Question, SkipRow
from deepspec.regenerate.replies import chat_answer, decoded, retry_after, text_answer
from deepspec.regenerate.spec import Sampling

REFUSED = frozenset({400, 413, 422})
"""HTTP statuses that say that the request itself is wrong: asking again gives the same."""
TOO_MANY = 429
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0


def label(url: str) -> str:
    """Return an endpoint's name for rows, tables and messages: host, port and path, never user or password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname}{port}{parts.path}"


class Engine:
    """A client of one endpoint.

    Args:
        endpoint: where it is and which model it serves.
        deadline: seconds after which a request is given up.
    """

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        """Make the client; nothing is sent yet."""
        self.model = endpoint.model
        self.label = label(endpoint.url)
        self.dialect = OTHER
        self.takes_ids = False
        """Whether prompts are sent as token ids: its template would print another date than ours."""
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

    async def ask(self, question: Question, sampling: Sampling) -> Answer:
        """Return the target's answer to one question.

        Raises:
            AskError: there is none; says whose fault it is.
            SkipRow: the sample goes on with calls of tools, and answers to token ids are not parsed for those.
        """
        if not self.takes_ids:
            return await self.ask_messages(question, sampling)
        if question.needs_calls:
            raise SkipRow("the prompt is sent as token ids, so that calls of tools in the answer are not told apart")
        return await self.ask_ids(question, sampling)

    async def ask_messages(self, question: Question, sampling: Sampling) -> Answer:
        """Return the answer to a conversation that the engine renders itself.

        Raises:
            AskError: there is none.
        """
        request = body(question, sampling, self.dialect)
        extra = {key: value for key, value in request.items() if key != "messages"}
        call = self._client.chat.completions.with_raw_response.create
        raw = await self._call(call(model=self.model, messages=request["messages"], extra_body=extra), self._deadline)
        return chat_answer(self._object(raw), self.dialect, self.label)

    async def ask_ids(self, question: Question, sampling: Sampling) -> Answer:
        """Return the answer to a conversation as we render it, its text as it is.

        Raises:
            AskError: there is none.
        """
        request = ids_body(question, sampling, self.dialect)
        extra = {key: value for key, value in request.items() if key != "prompt"}
        call = self._client.completions.with_raw_response.create
        raw = await self._call(call(model=self.model, prompt=request["prompt"], extra_body=extra), self._deadline)
        return text_answer(self._object(raw), self.dialect, self.label)

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
