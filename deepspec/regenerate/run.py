"""Regenerate the answers to published prompts: from engines, or from a file of answers that the target gave before."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from deepspec.artifacts import Artifact
from deepspec.asking.conversation import is_thinking, regenerate_row, without_answer
from deepspec.asking.dated import told_date
from deepspec.asking.engine import AskedEngines, Engine
from deepspec.asking.judge import check_prompt
from deepspec.asking.preflight import Preflight
from deepspec.asking.question import Answer, Question
from deepspec.asking.reader import TargetReader
from deepspec.engines.failures import LONGEST_REASON, AskError
from deepspec.engines.patience import LONGER, longest_wait, until
from deepspec.errors import AnswersError, CancelledError, DeepSpecError, EngineError, RowError
from deepspec.lines.bad_rows import one_row
from deepspec.messages.conversations import AnswerRow, PromptRow
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.regenerate.adopt import adopt_answers
from deepspec.regenerate.parts import AnswerPart, Book
from deepspec.regenerate.progress import Progress, accounts
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.report import Report

if TYPE_CHECKING:
    from deepspec.gathering.answering import Answering

SLACK = 1.25
"""Samples under way for each request that the endpoints take, so that none of them ever waits for work."""
TICK_SECONDS = 1.0


def run(
    spec: RegenerateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Publish one row per prompt and return the counts.

    Raises:
        EngineError: an endpoint is not there, or not what the plan names, and no row was asked; or every endpoint asks
            to be left alone.
        BadRowsError: more rows are errors of their own than `bad_share` allows; the same call with a higher one goes
            on.
        AnswersError: rows failed with errors that can pass, or every endpoint went away; the same call goes on.
        CancelledError: the process was asked to stop; the same call goes on.
    """
    reader = TargetReader.of(spec.target, placement, spec.date)
    book = Book(spec, inputs["prompts"], out, reader.drift)
    try:
        if spec.answers is not None:
            adopt_answers(book, spec, placement, out.scratch, report)
        else:
            with _states(spec, out, placement, report) as answering:
                asyncio.run(_Asking(spec, book, reader, placement, report, answering).run())
    finally:
        book.close()
    book.check()
    if book.failed:
        raise AnswersError(
            f"{book.failed} of {book.total} rows failed with errors that can pass, and wait in {out.scratch}; "
            "run again to ask them again, or publish them as errors with --keep-errors"
        )
    counts = book.summary()
    report.log(accounts(counts))
    return counts


@contextmanager
def _states(spec: RegenerateSpec, out: Out, placement: Placement, report: Report) -> Iterator["Answering | None"]:
    """Yield what takes the states that come with answers; None where none are asked for."""
    if spec.while_answering is None:
        yield None
        return
    from deepspec.gathering.answering import Answering  # loads torch, and the target

    with Answering(spec.while_answering, spec.target, placement, out.address, report) as answering:
        yield answering


class _Asking:
    """One run over the engines."""

    def __init__(
        self,
        spec: RegenerateSpec,
        book: Book,
        reader: TargetReader,
        placement: Placement,
        report: Report,
        answering: "Answering | None",
    ) -> None:
        self._sampling = spec.sampling
        self._book = book
        self._reader = reader
        self._placement = placement
        self._report = report
        self._answering = answering
        self._active = 0

    async def run(self) -> None:
        """Ask every row that is not finished; TERM and Ctrl-C end it in order."""
        task = asyncio.current_task()
        if task is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            seconds = deadline(self._sampling.max_tokens)
            async with _clients(self._placement, seconds, self._answering) as engines:
                await self._ask_engines(engines)
        except asyncio.CancelledError:
            raise CancelledError(f"{self._book.kept} of {self._book.total} rows are kept; run again to go on") from None
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _ask_engines(self, engines: list[Engine]) -> None:
        preflight = Preflight(self._sampling, self._reader, self._report)
        down = await preflight.check_all(engines)
        sampling = told_date(self._sampling, self._reader)
        dispatcher = AskedEngines(engines, lambda engine, asked: engine.ask(asked, sampling), preflight.check)
        for engine, error in down:
            dispatcher.distrust(engine, error)
        await self.ask_all(dispatcher)

    async def ask_all(self, dispatcher: AskedEngines) -> None:
        """Ask every row that is not finished of engines that were checked."""
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

    async def _room(self, dispatcher: AskedEngines) -> None:
        """Wait until one more sample may be under way, and count it."""
        while self._active >= dispatcher.capacity * SLACK:
            dispatcher.room.clear()
            await dispatcher.room.wait()
        self._active += 1

    async def _ask_row(self, dispatcher: AskedEngines, part: AnswerPart, row: PromptRow) -> None:
        try:
            finished, can_pass = await self._finished(dispatcher, row)
        finally:
            self._active -= 1
            dispatcher.room.set()
        if self._reader.day is not None:
            finished["date"] = self._reader.day.isoformat()
        self._book.finish(part, finished, can_pass)
        await self._commit_complete()

    async def _finished(self, dispatcher: AskedEngines, row: PromptRow) -> tuple[AnswerRow, bool]:
        """Return what became of a row, and whether the next run may do better."""
        try:
            with one_row("odd_answer"):
                return await regenerate_row(row, partial(self._ask, dispatcher, row["split"]), self._sampling), False
        except (AskError, RowError) as error:
            if self._answering is not None:
                self._answering.kept.drop(row["id"])
            failed = without_answer(row, "error", str(error)[:LONGEST_REASON], is_thinking(self._sampling, row["id"]))
            if error.reason:
                failed["reason"] = error.reason
            return failed, not error.reason

    async def _ask(self, dispatcher: AskedEngines, split: str, question: Question) -> Answer:
        """Return the answer to a question, given to the very prompt that the target's template renders."""
        with one_row("template_refuses"):
            told = {"tools": question.tools or None, "switches": self._sampling.chat_template_kwargs}
            ids = self._reader.prompt_ids(question.messages, thinking=question.thinking, **told)
        keeps = self._answering is not None and self._answering.keeps(split)
        asked = replace(question, prompt_ids=ids, row=question.row if keeps else None)
        answer = await dispatcher.ask(asked)
        check_prompt(asked, answer)
        return answer

    async def _commit_complete(self) -> None:
        for part in self._book.take_complete(self._placement.keep_errors):
            await asyncio.to_thread(self._book.commit, part)

    async def _watch(self, dispatcher: AskedEngines, progress: Progress) -> None:
        while True:
            progress.tick()
            self._check_patience(dispatcher)
            await asyncio.sleep(TICK_SECONDS)

    def _check_patience(self, dispatcher: AskedEngines) -> None:
        told = "; ".join(f"{lane.engine.label}: {lane.last_failure}" for lane in dispatcher.lanes)
        kept = f"{self._book.kept} of {self._book.total} rows are kept"
        limit = longest_wait(self._placement.endpoints, self._placement.patience)
        if dispatcher.seconds_paused > limit:
            raise EngineError(
                f"every endpoint asks to be left alone, at least until {until(dispatcher.seconds_paused)} ({told}); "
                f"{kept}, and the same command goes on then"
            )
        if dispatcher.seconds_idle > limit:
            raise AnswersError(
                f"no endpoint answered for {limit:.0f} s ({told}); {kept}, run again to go on, or {LONGER}"
            )


def deadline(max_tokens: int) -> float:
    """Return after how many seconds a request is given up.

    Three minutes, and two tokens a second for the longest answer: an engine on a busy processor is slow, not dead.
    """
    return 180 + max_tokens / 2


@asynccontextmanager
async def _clients(placement: Placement, seconds: float, answering: "Answering | None") -> AsyncIterator[list[Engine]]:
    engines = [Engine(endpoint, seconds, answering) for endpoint in placement.endpoints]
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.close()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error of a group that says why it ended: the first of ours where there is one."""
    errors = list(_leaves(group))
    return next((error for error in errors if isinstance(error, DeepSpecError)), errors[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
