"""The same prompts through an engine that serves target and draft: does it see the acceptance that we see?

llama.cpp's server tells, with each answer, how many tokens it drafted and how many of them were accepted. It reads the
prompt, then makes one token of its own per round: rounds = tokens − 1 − accepted, the first token coming from the
prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from deepspec.artifacts import Endpoint
from deepspec.errors import EngineError
from deepspec.formats.scores import Interval

TIMEOUT = 600.0
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an engine told about one answer."""

    tokens: int
    drafted: int
    accepted: int
    seconds: float
    """Of generation, the prompt's reading left out."""

    @property
    def rounds(self) -> int:
        """Return the passes of the target after the one that read the prompt."""
        return max(self.tokens - 1 - self.accepted, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineAcceptance:
    """What an engine accepted of a draft."""

    answers: int
    accepted_length: Interval
    """Tokens per round, the target's own counted."""
    accept_rate: float | None
    """Accepted over drafted."""
    tokens_per_second: float

    def agrees_with(self, ours: Interval) -> bool:
        """Return whether the two intervals overlap."""
        mine = self.accepted_length
        if None in (mine.low, mine.high, ours.low, ours.high):
            return False
        return float(mine.low or 0) <= float(ours.high or 0) and float(ours.low or 0) <= float(mine.high or 0)


def ask_engine(
    endpoint: Endpoint, questions: Sequence[str], *, max_tokens: int, temperature: float = 0.0
) -> EngineAcceptance:
    """Ask an engine the questions, one after another, and return what it accepted of its draft.

    Args:
        endpoint: an engine that serves target and draft, and tells `timings` (llama.cpp's server does).
        questions: first turns.
        max_tokens: of each answer.
        temperature: of the answers.

    Raises:
        EngineError: it cannot be reached, refuses, or tells nothing about drafts.
    """
    headers = {"Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"} if endpoint.api_key else {}
    with httpx.Client(timeout=TIMEOUT, headers=headers) as client:
        answers = [_ask(client, endpoint, each, max_tokens, temperature) for each in questions]
    return summarise(answers)


def summarise(answers: Sequence[Answer], seed: int = 0) -> EngineAcceptance:
    """Return the acceptance of some answers, with an interval by bootstrap over them.

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
    drafted = sum(each.drafted for each in answers)
    return EngineAcceptance(
        answers=len(answers),
        accepted_length=Interval(value=float(total / rounds), low=float(low), high=float(high)),
        accept_rate=sum(each.accepted for each in answers) / drafted if drafted else None,
        tokens_per_second=sum(each.tokens for each in answers) / max(sum(each.seconds for each in answers), 1e-9),
    )


def _ask(client: httpx.Client, endpoint: Endpoint, question: str, max_tokens: int, temperature: float) -> Answer:
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    try:
        response = client.post(f"{endpoint.url}/chat/completions", json=body).raise_for_status()
        return _answer(response.json(), endpoint)
    except httpx.HTTPError as error:
        raise EngineError(f"engine {endpoint.url}: {error}; check that it serves {endpoint.model}") from error


def _answer(told: dict[str, Any], endpoint: Endpoint) -> Answer:
    timings = told.get("timings")
    if not isinstance(timings, dict) or "draft_n" not in timings:
        raise EngineError(
            f"engine {endpoint.url} tells nothing about drafts; start it with one, or take llama.cpp's server"
        )
    return Answer(
        tokens=int(told["usage"]["completion_tokens"]),
        drafted=int(timings["draft_n"]),
        accepted=int(timings["draft_n_accepted"]),
        seconds=float(timings["predicted_ms"]) / 1000,
    )
