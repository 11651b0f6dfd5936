"""Samples asked of several engines for their states, under one dispatcher and within room for bytes.

This runs in any event loop: in that of `EngineStates`, in a thread of its own, or in one whose clock is made up
(`deepspec.simulate`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Generic, Protocol, TypeVar

from deepspec.engines.dispatcher import Counted, Dispatcher
from deepspec.engines.failures import AskError
from deepspec.engines.patience import LONGER, longest_wait
from deepspec.errors import EngineError
from deepspec.states.staging import Staging
from deepspec.states.wanted import RESTART

PROBES = 3
"""Prompts by which an engine is proven before the first sample."""
PROBE_TOKENS = 256
"""Longest of them."""
TICK_SECONDS = 1.0

AskedT_contra = TypeVar("AskedT_contra", contravariant=True)
GivenT_co = TypeVar("GivenT_co", bound=Counted, covariant=True)


class Gives(Protocol[AskedT_contra, GivenT_co]):
    """A client of one engine that gives states."""

    @property
    def label(self) -> str:
        """Return the engine's name for people."""

    async def ask(self, ids: AskedT_contra, /) -> GivenT_co:
        """Return the states of some tokens."""

    async def close(self) -> None:
        """Close the connections."""


AskedT = TypeVar("AskedT")
GivenT = TypeVar("GivenT", bound=Counted)


class Asking(Generic[AskedT, GivenT]):
    """Engines that are asked for states. Made, and used, within a running loop.

    Args:
        engines: the clients, at least one.
        check: proves an engine; raises AskError where it gives nothing, EngineError where it gives what is not wanted.
        staging: room for what is asked for and not written yet.
        jitter: draws the waits between attempts.
        patience: seconds for which it is waited while nothing is under way; None: as long as for any engine.
    """

    def __init__(
        self,
        engines: Sequence[Gives[AskedT, GivenT]],
        check: Callable[[Gives[AskedT, GivenT]], Awaitable[None]],
        staging: Staging,
        jitter: Random | None = None,
        patience: float | None = None,
    ) -> None:
        """Ask nothing yet."""
        self._patience = longest_wait(()) if patience is None else patience
        self._engines, self._check, self._staging, self._jitter = engines, check, staging, jitter
        self._dispatcher: Dispatcher[Gives[AskedT, GivenT], AskedT, GivenT] | None = None
        self._given_up: EngineError | None = None
        self._watching: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.Task[object], None] = {}
        """Those who wait for an engine, in the order in which they came."""

    async def begin(self) -> list[tuple[str, AskError]]:
        """Prove every engine, and return the labels of those that do not answer, with why.

        Raises:
            EngineError: none answers, or one gives what is not wanted.
        """
        found = await asyncio.gather(*(self._answers(engine) for engine in self._engines))
        down = [(engine, error) for engine, error in zip(self._engines, found, strict=True) if error is not None]
        if len(down) == len(self._engines):
            told = "; ".join(f"{engine.label}: {error}" for engine, error in down)
            raise EngineError(f"no engine gives states ({told}); start one, or check the URL")
        self._dispatcher = Dispatcher(self._engines, _ask, self._check, self._jitter)
        for engine, error in down:
            self._dispatcher.distrust(engine, error)
        self._watching = asyncio.create_task(self._watch(self._dispatcher))
        return [(engine.label, error) for engine, error in down]

    async def given(self, question: AskedT, what: str, size: int | None = None) -> GivenT:
        """Return what an engine gave, once there was room for so many bytes; they are taken until `staging.free`.

        Args:
            question: what is asked.
            what: it is of, for messages.
            size: bytes of the states; None: room for them is taken already.

        Raises:
            EngineError: no engine gives them.
        """
        task = asyncio.current_task()
        if self._dispatcher is None or task is None:
            raise EngineError("no engine was proven yet; enter the context first")
        self._waiting[task] = None
        try:
            if size is not None:
                await self._staging.take(size)
            return await self._dispatcher.ask(question)
        except AskError as error:
            advice = RESTART if not error.can_pass else "what was committed is kept; run again to go on"
            raise EngineError(f"no engine gives states of {what}: {error}; {advice}") from None
        except asyncio.CancelledError:
            if self._given_up is not None:
                raise self._given_up from None
            raise
        finally:
            del self._waiting[task]

    async def end(self) -> None:
        """Give up what was asked and is not here yet."""
        waiting: list[asyncio.Task[object]] = [*self._waiting, *filter(None, [self._watching])]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        if self._dispatcher is not None:
            await self._dispatcher.close()
        for engine in self._engines:
            with suppress(OSError):
                await engine.close()

    async def _answers(self, engine: Gives[AskedT, GivenT]) -> AskError | None:
        try:
            await self._check(engine)
        except AskError as error:
            if not error.can_pass:
                raise EngineError(f"engine {engine.label} refuses what it is asked: {error}; {RESTART}") from None
            return error
        return None

    async def _watch(self, dispatcher: Dispatcher[Gives[AskedT, GivenT], AskedT, GivenT]) -> None:
        """Give up where no engine does anything for long."""
        while self._given_up is None:
            await asyncio.sleep(TICK_SECONDS)
            if max(dispatcher.seconds_idle, dispatcher.seconds_paused) > self._patience:
                told = "; ".join(f"{lane.engine.label}: {lane.last_failure}" for lane in dispatcher.lanes)
                self._given_up = EngineError(
                    f"no engine gave states for {self._patience:.0f} s ({told}); what was committed is kept, run "
                    f"again to go on, or {LONGER}"
                )
        for task in list(self._waiting):
            task.cancel()


async def _ask(engine: Gives[AskedT, GivenT], question: AskedT) -> GivenT:
    return await engine.ask(question)
