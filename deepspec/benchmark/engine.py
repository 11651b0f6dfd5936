"""The same prompts through an engine that serves target and draft: does it accept what we accept, and is it faster?

What was accepted is told by the engine itself: llama.cpp's server with each answer, vLLM's in its counters. The first
token of an answer comes from the prompt, every round makes one of the target's own: rounds = tokens − 1 − accepted.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from deepspec.errors import EngineError
from deepspec.formats.scores import Interval, interval
from deepspec.formats.speed import EngineSpeed
from deepspec.placement import Endpoint
from deepspec.rounds.decoded import Decoded
from deepspec.rounds.measure import estimates, tally

TIMEOUT = 600.0
RESAMPLES = 1000
_COUNTER = r"^vllm:spec_decode_num_{}_tokens(?:_total)?(?:\{{.*\}})? ([0-9.e+]+)$"
"""A line of vLLM's counters, since its start: `draft` or `accepted`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an engine told about one answer."""

    tokens: int
    drafted: int
    accepted: int
    seconds: float
    """Of generation; where the engine does not tell it, of the whole request."""

    @property
    def rounds(self) -> int:
        """Return the passes of the target after the one that read the prompt."""
        return max(self.tokens - 1 - self.accepted, 0)


class Engine:
    """One engine, asked one prompt after another: its counters must be ours alone.

    Args:
        endpoint: OpenAI-compatible, with completions of token ids.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Open a connection and look which way the engine tells about drafts.

        Raises:
            EngineError: it cannot be reached.
        """
        key = endpoint.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._endpoint = endpoint
        self._root = endpoint.url.removesuffix("/v1")
        self._client = httpx.Client(timeout=TIMEOUT, headers=headers)
        self._counted = self._counters()

    def name(self) -> str:
        """Return what it calls itself, with its version where it tells that."""
        for path, key, engine in (("/props", "build_info", "llama.cpp"), ("/version", "version", "vLLM")):
            told = self._get(path)
            if told.is_success and key in told.json():
                return f"{engine} {told.json()[key]}"
        return self._endpoint.url

    def ask(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """Return what became of a prompt at temperature 0.

        Raises:
            EngineError: it refuses.
        """
        body = {"model": self._endpoint.model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
        start = time.perf_counter()
        try:
            told = self._client.post(f"{self._endpoint.url}/completions", json=body).raise_for_status().json()
        except httpx.HTTPError as error:
            raise self._error(error) from error
        return self._answer(told, time.perf_counter() - start)

    def _answer(self, told: dict[str, Any], seconds: float) -> Answer:
        timings = told.get("timings") or {}
        tokens = int(told["usage"]["completion_tokens"])
        if self._counted is None:
            return Answer(
                tokens=tokens,
                drafted=int(timings.get("draft_n", 0)),
                accepted=int(timings.get("draft_n_accepted", 0)),
                seconds=float(timings["predicted_ms"]) / 1000 if "predicted_ms" in timings else seconds,
            )
        before, self._counted = self._counted, self._counters() or self._counted
        drafted, accepted = (now - then for now, then in zip(self._counted, before, strict=True))
        return Answer(tokens=tokens, drafted=drafted, accepted=accepted, seconds=seconds)

    def _counters(self) -> tuple[int, int] | None:
        """Return vLLM's drafted and accepted tokens so far; None where the engine has no such counters."""
        text = self._get("/metrics").text
        found = [re.findall(_COUNTER.format(name), text, re.MULTILINE) for name in ("draft", "accepted")]
        return None if not found[0] else (_sum(found[0]), _sum(found[1]))

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(f"{self._root}{path}")
        except httpx.HTTPError as error:
            raise self._error(error) from error

    def _error(self, error: httpx.HTTPError) -> EngineError:
        model = self._endpoint.model
        return EngineError(f"engine {self._endpoint.url}: {error}; check that it runs and serves {model}")


def check_engine(
    drafting: Endpoint, plain: Endpoint | None, asked: Sequence[tuple[Sequence[int], Decoded]], max_tokens: int
) -> EngineSpeed:
    """Ask an engine prompts that were decoded here at temperature 0, and hold what it accepts against ours.

    Args:
        drafting: serves target and draft.
        plain: serves the target alone, on the same machine; None: no speed-up is told.
        asked: prompt, and what decoding here made of it.
        max_tokens: of an answer, as here.

    Raises:
        EngineError: it cannot be reached, refuses, or tells nothing about a draft.
    """
    engine, alone = Engine(drafting), None if plain is None else Engine(plain)
    answers, plains = [], []
    for prompt, _ in asked:
        answers.append(engine.ask(prompt, max_tokens))
        if alone is not None:
            plains.append(alone.ask(prompt, max_tokens))
    drafted = sum(each.drafted for each in answers)
    if not drafted:
        raise EngineError(f"engine {drafting.url} drafted nothing; start it with the draft, or check that it loaded it")
    theirs, decoded = tokens_per_round(answers), [each for _, each in asked if each.rounds]
    slots = max(each.proposed for sample in decoded for each in sample.rounds)
    ours = interval(estimates(tally(decoded, slots))["tokens_per_round"])
    return EngineSpeed(
        engine=engine.name(),
        samples=len(answers),
        tokens_per_round=theirs,
        ours=ours,
        accept_rate=sum(each.accepted for each in answers) / drafted,
        tokens_per_second=_speed(answers),
        plain_tokens_per_second=_speed(plains) if plains else None,
        agrees=overlap(theirs, ours),
    )


def tokens_per_round(answers: Sequence[Answer], seed: int = 0) -> Interval:
    """Return the tokens that a round makes, with an interval by bootstrap over answers.

    Raises:
        EngineError: no answer took a round.
    """
    sums = np.array([[each.tokens - 1, each.rounds] for each in answers if each.rounds], dtype=np.float64)
    if not len(sums):
        raise EngineError("the engine's answers are too short to measure; raise the number of tokens")
    weights = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    drawn = weights @ sums
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    total, rounds = sums.sum(0)
    return Interval(value=float(total / rounds), low=float(low), high=float(high))


def overlap(one: Interval, other: Interval) -> bool:
    """Return whether two intervals have a number in common; an unknown one has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def _speed(answers: Sequence[Answer]) -> float:
    return sum(each.tokens for each in answers) / max(sum(each.seconds for each in answers), 1e-9)


def _sum(numbers: Sequence[str]) -> int:
    return int(sum(float(number) for number in numbers))
