"""Engines whose template prints the clock: each is made to print the one date of the run, and has to prove it.

Either the template has a variable of its own for the date, and the engine heeds it: it reads as many tokens as ours of
a prompt that is told a short value, and a long one. Or the prompt is sent as token ids, and the engine counts exactly
these. That a plain prompt has as many tokens proves nothing: today's date may be as long as ours.
"""

from collections.abc import Sequence
from typing import Any

from deepspec.asking.engine import Engine
from deepspec.asking.question import Question
from deepspec.asking.reader import TargetReader
from deepspec.asking.sampling import Sampling
from deepspec.chat.clock import Clock
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.messages.conversations import Message

SHORT, LONG = "1", "one two three four five six seven eight nine ten"
"""Values of a variable for the date: no two engines that ignore it read as many tokens of both as ours does."""

_USER: Message = {"role": "user", "content": "Which day is it?"}
_SYSTEM: Message = {"role": "system", "content": "Answer in one word."}
_TOOL = {"type": "function", "function": {"name": "day", "description": "Today", "parameters": {"type": "object"}}}

PROBES: Sequence[tuple[list[Message], list[dict[str, Any]]]] = (
    ([_USER], []),
    ([_SYSTEM, _USER], []),
    ([_USER], [_TOOL]),
    ([_SYSTEM, _USER], [_TOOL]),
)
"""Messages and tools: a template may print the date in some of them only."""


def told_date(sampling: Sampling, reader: TargetReader) -> Sampling:
    """Return how the target samples, with the variable by which its template is told the date, where it has one.

    A value that the user gives it stands.
    """
    if reader.clock is None or reader.day is None:
        return sampling
    switches = {**reader.clock.switches(reader.day), **(sampling.chat_template_kwargs or {})}
    return sampling.but(chat_template_kwargs=switches)


async def settle_date(engine: Engine, reader: TargetReader, sampling: Sampling) -> None:
    """Make an engine see the date of the run where the target's template prints one.

    Raises:
        AskError: it does not answer.
        EngineError: there is no way.
    """
    engine.takes_ids = False
    if reader.clock is not None and not await _heeds_variable(engine, reader, sampling, reader.clock):
        await _check_ids(engine, reader, sampling)
        engine.takes_ids = True


async def _heeds_variable(engine: Engine, reader: TargetReader, sampling: Sampling, clock: Clock) -> bool:
    if clock.variable is None:
        return False
    for messages, tools in PROBES:
        told = [{**(sampling.chat_template_kwargs or {}), clock.variable: value} for value in (SHORT, LONG)]
        wanted = [_wanted(reader, messages, tools, switches) for switches in told]
        if wanted[0] != wanted[1]:
            question = Question(messages=messages, tools=tools, seed=1, thinking=False)
            asked = [sampling.but(max_tokens=1, chat_template_kwargs=switches) for switches in told]
            return await _counted(engine, question, asked) == wanted
    return False


async def _counted(engine: Engine, question: Question, asked: Sequence[Sampling]) -> list[int]:
    """Return how many prompt tokens an engine counts; none where it refuses to be told a variable."""
    try:
        return [(await engine.ask_messages(question, sampling)).prompt_tokens for sampling in asked]
    except AskError as error:
        if error.can_pass:
            raise
        return []


def _wanted(
    reader: TargetReader, messages: list[Message], tools: list[dict[str, Any]], switches: dict[str, Any]
) -> int:
    return len(reader.prompt_ids(messages, tools=tools or None, switches=switches) or ())


async def _check_ids(engine: Engine, reader: TargetReader, sampling: Sampling) -> None:
    ids = reader.prompt_ids([_USER], switches=sampling.chat_template_kwargs)
    question = Question(messages=[_USER], tools=[], seed=1, thinking=False, prompt_ids=ids)
    try:
        counted = (await engine.ask_ids(question, sampling.but(max_tokens=1))).prompt_tokens
    except AskError as error:
        if error.fault in ("busy", "late"):
            raise
        await engine.ask_messages(question, sampling.but(max_tokens=1))  # is it there at all?
        raise _no_way(engine, str(error)) from None
    if counted != len(ids or ()):
        raise _no_way(engine, f"it counts {counted} tokens where {len(ids or ())} were sent")


def _no_way(engine: Engine, why: str) -> EngineError:
    return EngineError(
        f"{engine.label}: the target's chat template prints the date, and the engine can be given no other than its "
        f"own: it heeds no variable of the template, and takes no prompt as token ids at /completions ({why}); take "
        "an engine that does, or name a chat_template without the date in the target's preset"
    )
