"""Loads: requests that follow each other, so many at once, and requests that arrive by chance.

A closed loop measures a load of n: n requests of staggered lengths come before those that count, so that these begin at
different moments, and others follow until the last of them is answered, so that each was served among n. In an open
loop a request is sent when it arrives, whether earlier ones are answered or not, and its latency counts from there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, cycle

import numpy as np

from deepspec.errors import EngineError
from deepspec.formats.levels import Accepted, Side
from deepspec.formats.numbers import Interval
from deepspec.serving.client import Request, ServedAnswer, ServingClient
from deepspec.serving.numbers import (
    accepted_in_answers,
    accepted_in_counters,
    between_tokens,
    closed_speed,
    open_speed,
    percentiles,
    with_rounds,
)

SendRequest = Callable[[Request, float], Awaitable[ServedAnswer]]
ATTEMPTS = 2
"""Times that a level is measured where its engine stops in the middle."""
BUSY = 0.7
"""Share of a core from which on the client is taken to be the limit."""
LATE = 0.05
"""Seconds by which a request may leave too late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What an engine is asked at one level."""

    requests: Sequence[Request]
    """Those that count."""
    at_once: int = 0
    """Closed loop: requests at once."""
    arrivals: Sequence[float] = ()
    """Open loop: seconds from the beginning at which each request arrives."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredLoad:
    """What an engine made of one load."""

    answers: Sequence[ServedAnswer]
    side: Side
    accepted: Accepted | None
    notes: tuple[str, ...] = ()
    limited: bool = False
    """Whether the client was the limit: its numbers are not the engine's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnginePatience:
    """How long an engine that stopped is waited for."""

    seconds: float = 60.0
    between_looks: float = 0.5


async def measured(
    client: ServingClient, load: Load, name: str, patience: EnginePatience
) -> tuple[MeasuredLoad | None, tuple[str, ...]]:
    """Return what an engine makes of a load, and what must be known of it.

    An engine that stops in the middle is waited for, and the level is measured once more; None where it stops again.

    Args:
        client: entered.
        load: what is asked.
        name: of the side, for what is told.
        patience: for an engine that stopped.
    """
    notes: tuple[str, ...] = ()
    for attempt in range(ATTEMPTS):
        try:
            found = await _once(client, load, name)
        except EngineError as error:
            again = attempt + 1 < ATTEMPTS and await is_back(client, patience)
            notes = (*notes, f"{name}: {'repeated, since it stopped' if again else 'not measured'}: {error}")
            if not again:
                return None, notes
        else:
            return found, (*notes, *found.notes)
    return None, notes


async def is_back(client: ServingClient, patience: EnginePatience) -> bool:
    """Wait for an engine that stopped; return whether it answers again. Without patience it is looked at once."""
    end = time.monotonic() + patience.seconds
    while True:
        try:
            if client.endpoint.model in await client.models():
                return True
        except EngineError:  # not back yet
            pass
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(patience.between_looks)


async def _once(client: ServingClient, load: Load, name: str) -> MeasuredLoad:
    before, spent, start = await client.counters(), time.process_time(), time.perf_counter()
    answers = await (closed(client.ask, load) if load.at_once else opened(client.ask, load))
    share = (time.process_time() - spent) / (time.perf_counter() - start)
    accepted, notes = accepted_in_answers(with_rounds(answers), load.seed), list[str]()
    after = await client.counters()
    if before is not None and after is not None:
        counted = after.since(before)
        accepted = None if counted is None else accepted_in_counters(counted)
        notes += [f"{name}: its counters began anew"] if counted is None else []
    accepted = accepted or await _gauged(client)
    notes += behind(answers, name) if load.arrivals else []
    late = max(each.sent - each.intended for each in answers)
    limited = share > BUSY or late > LATE
    if limited:
        notes.append(
            f"{name}: the client was the limit ({share:.0%} of a core, requests up to {1e3 * late:.0f} ms late)"
        )
    return MeasuredLoad(
        answers=answers, side=_side(answers, load, share), accepted=accepted, notes=tuple(notes), limited=limited
    )


async def _gauged(client: ServingClient) -> Accepted | None:
    """Return the mean of an SGLang that tells nothing with its answers: of a window of its choice, with no interval."""
    length = await client.accepted_length() if client.kind == "SGLang" else None
    if not length:  # it has the gauge whether it drafts or not
        return None
    return Accepted(rounds=0, drafted=0, accepted=0, tokens_per_round=Interval(value=length, low=None, high=None))


def behind(answers: Sequence[ServedAnswer], name: str) -> list[str]:
    """Return what to say where most requests were open when the last one arrived: latencies tell for how long."""
    last = max(each.intended for each in answers)
    still = sum(each.end > last for each in answers)
    return (
        [f"{name}: {still} of {len(answers)} requests were open when the last arrived"]
        if 2 * still > len(answers)
        else []
    )


def _side(answers: Sequence[ServedAnswer], load: Load, share: float) -> Side:
    cached = [each.cached for each in answers if each.cached is not None]
    return Side(
        requests=len(answers),
        tokens=sum(each.tokens for each in answers),
        tokens_per_second=closed_speed(answers, load.at_once, load.seed) if load.at_once else open_speed(answers),
        first_token=percentiles([each.first for each in answers]),
        between_tokens=between_tokens(answers),
        latency=percentiles([each.latency for each in answers]),
        cached_tokens=sum(cached) if cached else None,
        client_share=share,
    )


async def closed(ask: SendRequest, load: Load) -> list[ServedAnswer]:
    """Return the answers to requests, each served among a constant number of them, in their order.

    Raises:
        EngineError: a request was not answered.
    """
    found: dict[int, ServedAnswer] = {}
    feed = _feed(load)

    async def worker() -> None:
        while len(found) < len(load.requests):
            place, request = next(feed)
            answer = await ask(request, time.perf_counter())
            if place >= 0:
                found[place] = answer

    workers = [asyncio.create_task(worker()) for _ in range(load.at_once)]
    try:
        while len(found) < len(load.requests):
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            workers = [each for each in workers if not each.done()]
    finally:
        await _stopped(workers)
    return [found[place] for place in range(len(load.requests))]


def _feed(load: Load) -> Iterator[tuple[int, Request]]:
    """Yield requests without end; those that count have their place, the others −1."""
    n, requests = load.at_once, load.requests
    first = (
        replace(each, max_tokens=max(1, each.max_tokens * (k + 1) // n)) for k, each in zip(range(n), cycle(requests))
    )
    return chain(((-1, each) for each in first), zip(count(), requests), ((-1, each) for each in cycle(requests)))


async def opened(ask: SendRequest, load: Load) -> list[ServedAnswer]:
    """Return the answers to requests that are sent when they arrive, in their order.

    Raises:
        EngineError: a request was not answered.
    """
    start = time.perf_counter()

    async def one(request: Request, at: float) -> ServedAnswer:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        return await ask(request, start + at)

    tasks = [asyncio.create_task(one(*each)) for each in zip(load.requests, load.arrivals, strict=True)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _stopped(tasks)


def arrivals(rate: float, number: int, seed: int) -> list[float]:
    """Return the seconds at which requests arrive by chance, so many a second on average; the first at 0."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=number - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


async def _stopped(tasks: Sequence["asyncio.Task[object]"]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
