"""An engine with and without a draft, at every load that is asked for."""

import asyncio
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice

from deepspec.errors import EngineError, SpecError
from deepspec.formats.engine_speed import EngineSpeed
from deepspec.formats.levels import Level
from deepspec.formats.numbers import Interval
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import BreakEven, Tried, UnderLoad
from deepspec.placement import Endpoint
from deepspec.report import Report
from deepspec.rounds.measure import Floats
from deepspec.serving.check import (
    DecodedPrompt,
    ServedShape,
    against_ours,
    check_answers,
    check_served_target,
    in_turn,
    started_without,
)
from deepspec.serving.client import Request, ServedAnswer, ServingClient
from deepspec.serving.levels import EnginePatience, Load, MeasuredLoad, arrivals, is_back, measured
from deepspec.serving.numbers import break_even, of_draws, speedups
from deepspec.serving.proposals import best_for_all, proposals
from deepspec.serving.warnings import warnings

SPARE_FILES = 64
"""Open files that the client's process needs beside its connections."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedSubject:
    """What is measured, and with which prompts."""

    drafting: Endpoint
    """Serves target and draft."""
    plain: Endpoint | None
    """Serves the target alone; None: no speed-up is told."""
    target: ServedShape
    slots: int
    """Tokens that the draft proposes per round, at most."""
    shares: Sequence[float]
    """Of rounds that accept the tokens through each position, as the evaluation measured."""
    prompts: Mapping[int | None, Sequence[Sequence[int]]]
    """Length of all -> prompts; None: as they are."""
    known: Sequence[DecodedPrompt] = ()
    """Prompts that were decoded here; none: what the engine accepts is held against nothing."""
    known_tokens: int = 64
    """Of their answers, at most."""
    hardware: str = ""
    started: bool = False
    """Whether the run started the engines itself."""
    options: Sequence[str] = ()
    """By which an SGLang is told what it reads from no file of the draft."""
    patience: EnginePatience = field(default_factory=EnginePatience)


def under_load(subject: ServedSubject, options: ServeOptions, report: Report) -> UnderLoad:
    """Return what an engine gives with and without the draft at every load.

    Raises:
        EngineError: an engine cannot be reached, or serves another target.
        SpecError: the machine cannot open so many connections.
    """
    _check_files(options)
    return asyncio.run(_Run(subject, options, report).all())


def with_settings(subject: ServedSubject, options: ServeOptions, max_tokens: int, least: float) -> tuple[Tried, ...]:
    """Return what an engine gives that was started with other settings, at every number of requests at once.

    Raises:
        EngineError: it cannot be reached, or stops.
    """
    _check_files(options)
    return asyncio.run(_tried(subject, options, max_tokens, least))


async def _tried(subject: ServedSubject, options: ServeOptions, max_tokens: int, least: float) -> tuple[Tried, ...]:
    found = []
    async with ServingClient(subject.drafting) as client:
        for load in options.loads:
            got, notes = await measured(client, _load(subject, options, load, 0, None), "with", subject.patience)
            if got is None:
                raise EngineError("; ".join(notes))
            per_round = None if got.accepted is None else got.accepted.tokens_per_round
            told = {"load": load, "max_tokens": max_tokens, "least": least}
            found.append(Tried(**told, tokens_per_second=got.side.tokens_per_second, tokens_per_round=per_round))
    return tuple(found)


class _Run:
    """One measurement.

    Args:
        subject: what is measured.
        options: which loads.
        report: hears how far it is.
    """

    def __init__(self, subject: ServedSubject, options: ServeOptions, report: Report) -> None:
        self._subject, self._options, self._report = subject, options, report
        self._gone: set[str] = set()
        """Sides whose engine stopped and was not back in time."""
        self._draws: dict[int | None, list[tuple[int, Floats]]] = {}

    async def all(self) -> UnderLoad:
        """Check both engines, measure every level, and put together what it says."""
        subject, options = self._subject, self._options
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(ServingClient(subject.drafting))
            alone = None if subject.plain is None else await stack.enter_async_context(ServingClient(subject.plain))
            for each in (client, alone):
                if each is not None:
                    await check_served_target(each, subject.target)
            without = await started_without(client, subject.options)
            check = await self._check(client, alone)
            levels = await self._levels(client, alone)
        found = UnderLoad(
            engine=client.name,
            plain_engine=None if alone is None else alone.name,
            hardware=subject.hardware,
            started=subject.started,
            slots=subject.slots,
            options=options,
            check=check,
            levels=levels,
            break_even=self._break_even(),
            proposals=proposals(levels, subject.shares, subject.slots),
            best=best_for_all(levels, subject.shares, subject.slots),
        )
        told = warnings(found, client.kind, decoded_here=bool(subject.known), without=without)
        return found.model_copy(update={"warnings": told})

    async def _check(self, client: ServingClient, alone: ServingClient | None) -> EngineSpeed | None:
        if not (known := self._subject.known):
            return None
        self._report.log(f"{len(known)} prompts that were decoded here are asked first, one after another")
        answers = await self._answers(client)
        plains = [] if alone is None else await self._answers(alone)
        return against_ours(client.name, answers, plains, known)

    async def _answers(self, client: ServingClient) -> list[ServedAnswer]:
        """Return the answers to prompts that were decoded here, once it is known that the target gave them."""
        subject = self._subject
        answers = await in_turn(client, subject.known, subject.known_tokens)
        check_answers(client, answers, subject.known, subject.target.name)
        return answers

    async def _levels(self, client: ServingClient, alone: ServingClient | None) -> tuple[Level, ...]:
        planned, found = list(_planned(self._options)), []
        for done, (kind, load, context) in enumerate(planned):
            self._report.progress(done, len(planned), "levels", f"{load:g} {'at once' if kind else 'per second'}")
            asked = _load(self._subject, self._options, int(load) if kind else 0, 0 if kind else load, context)
            found.append(await self._level(client, alone, asked, (kind, load, context)))
        self._report.progress(len(planned), len(planned), "levels")
        return tuple(found)

    async def _level(
        self, client: ServingClient, alone: ServingClient | None, asked: Load, named: tuple[bool, float, int | None]
    ) -> Level:
        closed, load, context = named
        ours, notes = await self._side(client, asked, "with")
        theirs, more = (None, ()) if alone is None else await self._side(alone, asked, "without")
        return Level(
            kind="closed" if closed else "open",
            load=load,
            context=context,
            drafting=ours and ours.side,
            plain=theirs and theirs.side,
            accepted=ours and ours.accepted,
            speedup=self._speedup(ours, theirs, int(load), context) if closed else None,
            notes=(*notes, *more),
        )

    async def _side(self, client: ServingClient, asked: Load, name: str) -> tuple[MeasuredLoad | None, tuple[str, ...]]:
        """Return what one engine makes of a load; one that did not come back is not waited for again."""
        patience = EnginePatience(seconds=0) if name in self._gone else self._subject.patience
        found, notes = await measured(client, asked, name, patience)
        if found is None and not await is_back(client, EnginePatience(seconds=0)):
            self._gone.add(name)
        else:
            self._gone.discard(name)
        return found, notes

    def _speedup(
        self, ours: MeasuredLoad | None, theirs: MeasuredLoad | None, load: int, context: int | None
    ) -> Interval | None:
        if ours is None or theirs is None or ours.limited or theirs.limited:
            return None
        draws = speedups(ours.answers, theirs.answers, self._options.seed + load)
        self._draws.setdefault(context, []).append((load, draws))
        return of_draws(draws)

    def _break_even(self) -> tuple[BreakEven, ...]:
        found = (
            break_even([load for load, _ in pairs], [draws for _, draws in pairs], context)
            for context, pairs in self._draws.items()
        )
        return tuple(each for each in found if each is not None)


def _planned(options: ServeOptions) -> Iterator[tuple[bool, float, int | None]]:
    """Yield whether the loop is closed, the load, and the length of the prompts."""
    for context in options.contexts or (None,):
        for load in options.loads:
            yield True, load, context
        for rate in options.rates:
            yield False, rate, context


def _load(subject: ServedSubject, options: ServeOptions, at_once: int, rate: float, context: int | None) -> Load:
    number = max(options.requests, 2 * at_once)
    requests = [
        Request(prompt=prompt, max_tokens=options.max_tokens, natural=options.ends == "natural")
        for prompt in islice(cycle(subject.prompts[context]), number)
    ]
    moments = arrivals(rate, number, options.seed) if rate else ()
    return Load(requests=requests, at_once=at_once, arrivals=moments, seed=options.seed)


def _check_files(options: ServeOptions) -> None:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if options.widest + SPARE_FILES > most:
        raise SpecError(
            f"{options.widest} requests at once need as many connections, and this machine lets a process open {most} "
            "files; raise it (ulimit -n), or measure smaller loads"
        )
