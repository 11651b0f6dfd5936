"""Before the first row is asked, and whenever an endpoint has come back: is it the target, and does it do as told?

Checked of each endpoint: it answers; it serves the model under the name that the plan gives; it accepts every
sampling parameter; its prompts have as many tokens as the target's own tokenizer and chat template make of them; an
answer of it ends with a reason that is known; it heeds the parameters whose effect can be seen from outside. A
mismatch ends the run; a parameter that seems to be ignored is reported, since that can be told from a few answers only.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from deepspec.asking.dated import settle_date, told_date
from deepspec.asking.dialects import DIALECTS, OTHER
from deepspec.asking.engine import Engine
from deepspec.asking.question import Question
from deepspec.asking.reader import TargetReader
from deepspec.asking.sampling import Sampling
from deepspec.engines.failures import AskError, UnknownFinishError
from deepspec.engines.patience import until
from deepspec.errors import EngineError
from deepspec.messages.conversations import Message
from deepspec.report import Report

WHOLE_TOKENS = 64
"""Longest answer of the question that is answered to its end."""
PROBE_TOKENS = 12
PROVEN_TOKENS = 32
"""Answer by which states that come with answers are proven: token by token over more than a block of an engine's."""

CONVERSATIONS: Sequence[list[Message]] = (
    [{"role": "user", "content": "Hello, who are you?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Was ist 2 + 3? 🙂\n"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one."},
    ],
)
"""Prompts whose token counts are compared: plain, with a system prompt and other scripts, with history."""

BRIEF: list[Message] = [{"role": "user", "content": "Say yes."}]

STORY: list[Message] = [{"role": "user", "content": "Write river river river, again and again."}]

WIDE = Sampling(temperature=2.0, max_tokens=PROBE_TOKENS)
"""Settings under which several seeds hardly ever begin alike."""
GREEDY = Sampling(temperature=0.0, max_tokens=PROBE_TOKENS)

AGREE: Mapping[str, Sampling] = {
    "temperature": GREEDY,
    "top_p": WIDE.but(top_p=1e-6),
    "top_k": WIDE.but(top_k=1),
    "min_p": WIDE.but(min_p=1.0),
}
"""Parameter -> settings under which all seeds begin alike where it is heeded. Later they may part, where several tokens
share the highest logit: in bf16 that happens."""
SEEDS = (1, 2, 3)

DIFFER: Mapping[str, Sampling] = {
    "repetition_penalty": GREEDY.but(repetition_penalty=4.0),
    "presence_penalty": GREEDY.but(presence_penalty=2.0),
}
"""Parameter -> settings under which the answer is not the greedy one where it is heeded."""

NEUTRAL = Sampling()
"""Settings that leave the target's distribution as it is: a parameter at these values has no effect to miss."""


class Preflight:
    """Checks endpoints.

    Args:
        sampling: what every request will ask for.
        reader: the target's tokenizer, where it is on this machine.
        report: hears what was found.
    """

    def __init__(self, sampling: Sampling, reader: TargetReader, report: Report) -> None:
        """Check nothing yet."""
        self._sampling = told_date(sampling, reader)
        self._whole = self._sampling.but(max_tokens=min(WHOLE_TOKENS, sampling.max_tokens))
        self._reader = reader
        self._report = report

    async def check_all(self, engines: Sequence[Engine]) -> list[tuple[Engine, AskError]]:
        """Check all endpoints at once and return those that do not answer, and why; at least one does.

        Raises:
            EngineError: none is given, none answers, or one is not what the plan names.
        """
        if not engines:
            raise EngineError("no engine to ask; give --endpoint URL, or let the run start one")
        errors = await asyncio.gather(*(self._unreachable(engine) for engine in engines))
        down = [(engine, error) for engine, error in zip(engines, errors, strict=True) if error is not None]
        for engine, error in down:
            if error.retry_after is None:  # the others are told while the run goes on
                self._report.log(f"{_told(engine, error)}; it is asked as soon as it does")
        if len(down) == len(engines):
            told = [_told(engine, error) for engine, error in down]
            advice = "the same command goes on then" if _is_left_alone(errors) else "start one, or check the URL"
            raise EngineError(f"no engine answers ({'; '.join(told)}); {advice}")
        return down

    async def check(self, engine: Engine) -> None:
        """Check one endpoint and learn which engine it is.

        Raises:
            AskError: it does not answer.
            EngineError: it is not what the plan names, or refuses a parameter.
        """
        engine.dialect = DIALECTS.get(await self._owner(engine), OTHER)
        try:
            await self._check_answers(engine)
        except UnknownFinishError as error:
            await self._check_end(engine)
            raise error from None  # an engine that shuts down, say: not all of its answers end so
        except AskError as error:
            if error.can_pass:
                raise
            advice = "set the parameter that it names to null in regenerate.sampling, or take another engine"
            raise EngineError(f"{engine.label} refuses what it is asked: {error}; {advice}") from None

    async def _check_answers(self, engine: Engine) -> None:
        await settle_date(engine, self._reader, self._sampling)
        first = await engine.ask(self._question(CONVERSATIONS[0]), self._sampling.but(max_tokens=1))
        await self._check_prompts(engine)
        await engine.ask(self._question(BRIEF), self._whole)
        proven = self._sampling.but(max_tokens=PROVEN_TOKENS)
        await engine.prove_states([self._question(messages) for messages in CONVERSATIONS], proven)
        if engine.gives_states:
            self._report.log(f"{engine.label} {_unwanted(engine.leaves_states)}")
        ignored = ["max_tokens"] if first.completion_tokens > 1 else []
        ignored += await self._ignored(engine)
        if ignored:
            names = ", ".join(ignored)
            self._report.log(f"{engine.label} seems to ignore {names}; answers may not be sampled as planned")

    async def _unreachable(self, engine: Engine) -> AskError | None:
        try:
            await self.check(engine)
        except AskError as error:
            return error
        return None

    async def _owner(self, engine: Engine) -> str:
        served = await engine.served_models()
        if engine.model not in served:
            known = ", ".join(served) or "nothing"
            raise EngineError(f"{engine.label} serves {known}, not {engine.model!r}; check the model's name or the URL")
        return served[engine.model]

    async def _check_prompts(self, engine: Engine) -> None:
        for messages in CONVERSATIONS:
            for thinking in (False, True):
                question = self._question(messages, thinking=thinking)
                if question.prompt_ids is None:
                    return
                answer = await engine.ask(question, self._sampling.but(max_tokens=1))
                got, wanted = answer.prompt_tokens, len(question.prompt_ids)
                if got not in (0, wanted):  # 0: the engine does not count
                    raise EngineError(
                        f"{engine.label} makes {got} tokens of a prompt for which the target's chat template gives "
                        f"{wanted} (thinking {'on' if thinking else 'off'}); serve the model with its own template"
                    )

    async def _check_end(self, engine: Engine) -> None:
        """Ask once more for a whole answer: a reason for its end that is not known would make each row a failure."""
        try:
            await engine.ask(self._question(BRIEF), self._whole)
        except UnknownFinishError as error:
            raise EngineError(
                f"{engine.label} ends an answer with the reason {error.told}, which says neither that the target "
                "ended it (stop, tool_calls) nor that a limit cut it (length); take another engine, or put a proxy "
                "before it that gives one of these"
            ) from None

    async def _ignored(self, engine: Engine) -> list[str]:
        """Return the parameters that are set and show no effect."""
        ignored = []
        for name, narrow in AGREE.items():
            if self._is_set(name):
                answers = await self._answers(engine, *((narrow, seed) for seed in SEEDS))
                ignored += [name] if len({text.split()[0] for text in answers if text.split()}) > 1 else []
        for name, penalised in DIFFER.items():
            if self._is_set(name):
                one, other = await self._answers(engine, (GREEDY, 1), (penalised, 1))
                ignored += [name] if one == other else []
        return ignored

    def _is_set(self, name: str) -> bool:
        return getattr(self._sampling, name) not in (None, getattr(NEUTRAL, name))

    async def _answers(self, engine: Engine, *asked: tuple[Sampling, int]) -> list[str]:
        unsent = {name: None for name, value in self._sampling if value is None}
        questions = ((replace(self._question(STORY), seed=seed), sampling.but(**unsent)) for sampling, seed in asked)
        answers = await asyncio.gather(*(engine.ask(question, sampling) for question, sampling in questions))
        return [f"{answer.reasoning or ''}{answer.content}" for answer in answers]

    def _question(self, messages: list[Message], *, thinking: bool = False) -> Question:
        switches = self._sampling.chat_template_kwargs
        ids = self._reader.prompt_ids(messages, thinking=thinking, switches=switches)
        return Question(messages=messages, tools=[], seed=1, thinking=thinking, prompt_ids=ids)


def _unwanted(why: str) -> str:
    what = "writes hidden states for every answer, and nobody takes them"
    other = "its answers are not proven, and vLLM 0.32 for CPUs draws wrong ones so: ask an engine that gives none"
    if not why:
        return f"{what}: they are deleted as they come; {other}, or take states with answers (--states-while-answering)"
    return f"{what}, nor can they be deleted from here ({why}): its folder fills up; {other}"


def _told(engine: Engine, error: AskError) -> str:
    if error.retry_after is None:
        return f"{engine.label} does not answer: {error}"
    return f"{engine.label} asks to be left alone until {until(error.retry_after)} ({error})"


def _is_left_alone(errors: Sequence[AskError | None]) -> bool:
    return all(error is not None and error.retry_after is not None for error in errors)
