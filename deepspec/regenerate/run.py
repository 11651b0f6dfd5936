"""Regenerate the answers to published prompts: from engines, or from a file of answers that the target gave before."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from deepspec.artifacts import Artifact
from deepspec.errors import AnswersError, CancelledError, DeepSpecError
from deepspec.formats.conversations import PromptRow
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.regenerate.adopt import adopt_answers
from deepspec.regenerate.conversation import is_thinking, regenerate_row, without_answer
from deepspec.regenerate.dispatcher import Dispatcher
from deepspec.regenerate.engine import AskError, Engine
from deepspec.regenerate.parts import Book, Part
from deepspec.regenerate.preflight import Preflight
from deepspec.regenerate.progress import Progress, accounts
from deepspec.regenerate.reader import TargetReader
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.report import Report

SLACK = 1.25
"""Samples under way for each request that the endpoints take, so that none of them ever waits for work."""
PATIENCE_SECONDS = 600.0
"""How long a run waits while no endpoint is up."""
TICK_SECONDS = 1.0


def run(
    spec: RegenerateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish one row per prompt and return the counts.

    Raises:
        EngineError: an endpoint is not there, or not what the plan names; no row was asked.
        AnswersError: rows failed with errors that can pass, or every endpoint went away; the same call goes on.
        CancelledError: the process was asked to stop; the same call goes on.
    """
    reader = TargetReader.of(spec.target, placement)
    book = Book(spec, inputs["prompts"], out, reader.drift)
    try:
        if spec.answers is not None:
            adopt_answers(book, spec, placement, out.scratch, report)
        else:
            asyncio.run(_Asking(spec, book, placement, report).run(reader))
    finally:
        book.close()
    if book.failed:
        raise AnswersError(
            f"{book.failed} of {book.total} rows failed with errors that can pass, and wait in {out.scratch}; "
            "run again to ask them again, or publish them as errors with --keep-errors"
        )
    counts = book.summary()
    report.log(accounts(counts))
    return counts


class _Asking:
    """One run over the engines."""

    def __init__(self, spec: RegenerateSpec, book: Book, placement: Placement, report: Report) -> None:
        self._sampling = spec.sampling
        self._book = book
        self._placement = placement
        self._report = report
        self._active = 0

    async def run(self, reader: TargetReader) -> None:
        """Ask every row that is not finished; TERM and Ctrl-C end it in order."""
        task = asyncio.current_task()
        if task is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            async with _clients(self._placement, deadline(self._sampling.max_tokens)) as engines:
                preflight = Preflight(self._sampling, reader, self._report)
                down = await preflight.check_all(engines)
                dispatcher = Dispatcher(engines, self._sampling, preflight.check)
                for engine in down:
                    dispatcher.distrust(engine)
                await self._ask_all(dispatcher)
        except* asyncio.CancelledError:
            raise CancelledError(f"{self._book.done} of {self._book.total} rows are kept; run again to go on") from None
        except* DeepSpecError as group:
            raise _first(group) from None

    async def _ask_all(self, dispatcher: Dispatcher) -> None:
        progress = Progress(self._book, dispatcher, self._report)
        try:
            async with asyncio.TaskGroup() as watching:
                watch = watching.create_task(self._watch(dispatcher, progress))
                async with asyncio.TaskGroup() as asking:
                    for part, row in self._book.todo():
                        await self._room(dispatcher)
                        asking.create_task(self._ask_row(dispatcher, part, row))
                watch.cancel()
        finally:
            await dispatcher.close()
        await self._commit_complete()
        progress.tick()
        progress.table()

    async def _room(self, dispatcher: Dispatcher) -> None:
        """Wait until one more sample may be under way, and count it."""
        while self._active >= dispatcher.capacity * SLACK:
            dispatcher.room.clear()
            await dispatcher.room.wait()
        self._active += 1

    async def _ask_row(self, dispatcher: Dispatcher, part: Part, row: PromptRow) -> None:
        try:
            self._book.finish(part, await regenerate_row(row, dispatcher.ask, self._sampling))
        except AskError as error:
            failed = without_answer(row, "error", str(error), is_thinking(self._sampling, row["id"]))
            self._book.finish(part, failed, can_pass=error.can_pass)
        finally:
            self._active -= 1
            dispatcher.room.set()
        await self._commit_complete()

    async def _commit_complete(self) -> None:
        for part in self._book.take_complete(self._placement.keep_errors):
            await asyncio.to_thread(self._book.commit, part)

    async def _watch(self, dispatcher: Dispatcher, progress: Progress) -> None:
        while True:
            progress.tick()
            await asyncio.sleep(TICK_SECONDS)
            if dispatcher.seconds_down > PATIENCE_SECONDS:
                told = "; ".join(f"{lane.engine.label}: {lane.last_failure}" for lane in dispatcher.lanes)
                raise AnswersError(
                    f"no endpoint was up for {PATIENCE_SECONDS:.0f} s ({told}); "
                    f"{self._book.done} of {self._book.total} rows are kept, run again to go on"
                )


def deadline(max_tokens: int) -> float:
    """Return after how many seconds a request is given up.

    Three minutes, and two tokens a second for the longest answer: an engine on a busy processor is slow, not dead.
    """
    return 180 + max_tokens / 2


@asynccontextmanager
async def _clients(placement: Placement, seconds: float) -> AsyncIterator[list[Engine]]:
    engines = [Engine(endpoint, seconds) for endpoint in placement.endpoints]
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.close()


def _first(group: BaseExceptionGroup[DeepSpecError]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
