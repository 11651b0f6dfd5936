"""One asynchronous client for every engine: it streams completions of token ids and notes when each piece came.

What a piece costs the client is what the client takes from the engine beside it, and what it adds to every time that it
measures. So pieces are only counted while they come, and read when the answer is complete.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from deepspec.errors import EngineError
from deepspec.placement import Endpoint
from deepspec.serving.counters import Counters, gauge, read_counters

TIMEOUT = 600.0
"""Seconds after which an answer is given up."""
CONNECT = 10.0
TOGETHER = 0.001
"""Pieces that come within so many seconds of each other were made together: one round of speculation."""
_END = b"\n\n"
_DATA = b"data:"

ServingEngine = Literal["llama.cpp", "vLLM", "SGLang", "unknown"]
_OPTIONS = "/get_server_info"
"""Where SGLang tells its version, and with which options it was started."""
_NAMES: Sequence[tuple[str, str, ServingEngine]] = (
    ("/props", "build_info", "llama.cpp"),
    ("/version", "version", "vLLM"),
    (_OPTIONS, "version", "SGLang"),
)
"""Path, key of what it tells, and the engine that tells it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt."""

    prompt: Sequence[int]
    max_tokens: int
    natural: bool = False
    """Whether the target may end its answer before the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedAnswer:
    """What came of one request. Moments are of `time.perf_counter`."""

    tokens: int
    text: str
    intended: float
    """When it was to be sent."""
    sent: float
    arrivals: tuple[float, ...]
    """Of pieces that held text."""
    end: float
    drafted: int = 0
    accepted: int = 0
    counted: int = 0
    """Rounds with drafts that the engine counted; 0: it counts none."""
    by_accepted: tuple[int, ...] = ()
    """Of them, those that accepted 0, 1, 2 … drafts; none: the engine does not tell."""
    timed: float | None = None
    """Seconds of generation, as the engine tells them; None: it does not."""
    cached: int | None = None
    """Prompt tokens that the engine took from a cache; None: it does not tell."""
    cut: bool = False
    """Whether the limit of its tokens ended it."""

    @property
    def rounds(self) -> int:
        """Return the passes of the target after the one that read the prompt.

        Each makes a token of the target's own, but for one whose drafts end the answer: engines that count know better.
        """
        return max(self.tokens - 1 - self.accepted, self.counted)

    @property
    def latency(self) -> float:
        """Return the seconds from the moment at which it was to be sent."""
        return self.end - self.intended

    @property
    def first(self) -> float:
        """Return the seconds to the first piece."""
        return (self.arrivals[0] if self.arrivals else self.end) - self.intended

    def gaps(self) -> list[tuple[float, float]]:
        """Return seconds per token and their number of tokens, for all that came after the first piece.

        Pieces that come together share the wait for them; all pieces hold equally many of the tokens.
        """
        per_piece = self.tokens / max(len(self.arrivals), 1)
        rounds: list[tuple[float, float]] = []
        """When pieces came together, and their tokens."""
        before = float("-inf")
        for moment in self.arrivals:
            apart = moment - before > TOGETHER
            at, tokens = (moment, 0.0) if apart else rounds.pop()
            rounds.append((at, tokens + per_piece))
            before = moment
        return [((at - last) / tokens, tokens) for (last, _), (at, tokens) in pairwise(rounds)]


class ServingClient:
    """A client of one endpoint, to be entered before it asks.

    Args:
        endpoint: OpenAI-compatible, with completions of token ids.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Note where it is; nothing is sent yet."""
        self.endpoint = endpoint
        self.kind: ServingEngine = "unknown"
        self.name = endpoint.url
        self._root = endpoint.url.removesuffix("/v1")
        key = endpoint.api_key
        self._headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections and ask the engine what it is.

        Raises:
            EngineError: it cannot be reached.
        """
        limits = aiohttp.ClientTimeout(total=TIMEOUT, sock_connect=CONNECT)
        # no limit, so that the client cuts no load; a connection each, since llama.cpp ends those that streamed untold
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=limits, headers=self._headers)
        try:
            for path, key, kind in _NAMES:
                if key in (said := await self.json(path)):
                    self.kind, self.name = kind, f"{kind} {said[key]}"
                    break
        except EngineError:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._open.close()

    async def ask(self, request: Request, intended: float | None = None) -> ServedAnswer:
        """Return what comes of a prompt at temperature 0.

        Args:
            request: the prompt.
            intended: when it was to be sent; default: now.

        Raises:
            EngineError: the engine refuses, or ends before the answer does.
        """
        sent = time.perf_counter()
        raw, moments = bytearray(), list[float]()
        try:
            async with self._open.post(f"{self.endpoint.url}/completions", json=self._body(request)) as response:
                await _check(response)
                whole = response.content_type == "application/json"
                async for data in response.content.iter_any():
                    at = len(raw) - 1 if raw else 0
                    raw += data
                    moments += [time.perf_counter()] * raw.count(_END, at)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.error(error) from error
        end = time.perf_counter()
        pieces = [bytes(raw)] if whole else [bytes(each[5:]) for each in raw.split(_END) if each.startswith(_DATA)]
        told = _Told(pieces, [end] if whole else moments)
        if not told.complete:
            raise self.error("it ended in the middle of an answer")
        return told.answer(sent if intended is None else intended, sent)

    async def options(self) -> Mapping[str, Any]:
        """Return name -> value of the options with which an SGLang was started; of other engines nothing."""
        return await self.json(_OPTIONS) if self.kind == "SGLang" else {}

    async def counters(self) -> Counters | None:
        """Return the engine's counters of drafted tokens; None where it has none."""
        return read_counters(await self.text("/metrics"))

    async def accepted_length(self) -> float | None:
        """Return SGLang's gauge of tokens per round, for one that tells none with its answers; None: there is none."""
        return gauge(await self.text("/metrics"), "sglang:spec_accept_length")

    async def models(self) -> Mapping[str, Mapping[str, Any]]:
        """Return name -> what the engine tells of a model that it serves."""
        listed = (await self.json("/v1/models")).get("data")
        return {str(each.get("id")): each for each in listed or () if isinstance(each, dict)}

    async def json(self, path: str) -> Mapping[str, Any]:
        """Return the object at a path; empty where there is none."""
        try:
            found = json.loads(await self.text(path) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def text(self, path: str) -> str:
        """Return what is at a path; empty where there is nothing.

        Raises:
            EngineError: the engine cannot be reached.
        """
        try:
            async with self._open.get(f"{self._root}{path}") as response:
                return await response.text() if response.ok else ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.error(error) from error

    def error(self, told: object) -> EngineError:
        """Return an error that names the engine."""
        where, model = self.endpoint.url, self.endpoint.model
        return EngineError(f"engine {where}: {told}; check that it runs and serves {model}")

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not entered")
        return self._session

    def _body(self, request: Request) -> dict[str, Any]:
        own: Mapping[ServingEngine, dict[str, Any]] = {
            "llama.cpp": {"cache_prompt": False},
            "vLLM": {"cache_salt": secrets.token_hex(8)},  # no prefix is shared with another request
            "SGLang": {"return_spec_tokens_details": True},
            "unknown": {},
        }
        return {
            "model": self.endpoint.model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({} if request.natural else {"ignore_eos": True}),
            **own[self.kind],
        }


async def _check(response: aiohttp.ClientResponse) -> None:
    if not response.ok:
        said = (await response.text())[:300]
        raise aiohttp.ClientError(f"HTTP {response.status}: {said}")


class _Told:
    """The pieces of one answer, read."""

    def __init__(self, pieces: Sequence[bytes], moments: Sequence[float]) -> None:
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._rounds: Mapping[str, Any] = {}
        """What SGLang tells of them, in an event of their own."""
        self._texts: list[str] = []
        self._arrivals: list[float] = []
        self._cut = self.complete = False
        for piece, moment in zip(pieces, moments, strict=False):
            self._read(piece.strip(), moment)
        self._end = moments[-1] if moments else 0.0

    def _read(self, piece: bytes, moment: float) -> None:
        if piece == b"[DONE]":
            return
        event = json.loads(piece)
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        self._rounds = (event.get("sglext") or {}).get("spec_tokens_details") or self._rounds
        self.complete |= bool(self._usage)
        for choice in event.get("choices", ())[:1]:
            self._texts.append(choice.get("text") or "")
            self._cut |= choice.get("finish_reason") == "length"
            if choice.get("text") or not choice.get("finish_reason"):
                self._arrivals.append(moment)

    def answer(self, intended: float, sent: float) -> ServedAnswer:
        timings, rounds = self._timings, self._rounds
        cached = timings.get("cache_n", (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
        return ServedAnswer(
            tokens=int(self._usage["completion_tokens"]),
            text="".join(self._texts),
            intended=intended,
            sent=sent,
            arrivals=tuple(self._arrivals),
            end=self._arrivals[-1] if self._arrivals else self._end,
            drafted=int(timings.get("draft_n", rounds.get("spec_num_proposed_drafts", 0))),
            accepted=int(timings.get("draft_n_accepted", rounds.get("spec_num_correct_drafts", 0))),
            counted=int(rounds.get("spec_verify_ct", 0)),
            by_accepted=tuple(int(each) for each in rounds.get("spec_correct_drafts_histogram", ())),
            timed=float(timings["predicted_ms"]) / 1000 if "predicted_ms" in timings else None,
            cached=None if cached is None else int(cached),
            cut=self._cut,
        )
