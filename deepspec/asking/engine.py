"""One endpoint as regeneration asks it: conversations, or prompts as token ids; for states with the answers, or not."""

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepspec.asking.dialects import OTHER, body, ids_body
from deepspec.asking.question import Answer, Question, Response, SkipRow
from deepspec.asking.replies import chat_answer, text_answer
from deepspec.asking.sampling import Sampling
from deepspec.engines.client import NAMED, Client
from deepspec.engines.dispatcher import Dispatcher
from deepspec.engines.failures import AskError
from deepspec.placement import Endpoint

if TYPE_CHECKING:
    from deepspec.gathering.answering import Answering


class Engine(Client):
    """A client of one endpoint that answers questions.

    Args:
        endpoint: where it is and which model it serves.
        deadline: seconds after which a request is given up.
        answering: takes the states that come with answers; None: none are asked for.
    """

    def __init__(self, endpoint: Endpoint, deadline: float, answering: "Answering | None" = None) -> None:
        """Make the client; nothing is sent yet."""
        super().__init__(endpoint, deadline)
        self.dialect = OTHER
        self.takes_ids = False
        """Whether prompts are sent as token ids: its template would print another date than ours."""
        self.gives_states = False
        """Whether states have come with answers that nobody wants them of."""
        self.leaves_states = ""
        """Why their files cannot be deleted from here; empty: they are."""
        self._answering = answering

    async def ask(self, question: Question, sampling: Sampling) -> Answer:
        """Return the target's answer to one question.

        Raises:
            AskError: there is none; says whose fault it is.
            SkipRow: the sample goes on with calls of tools, and answers to token ids are not parsed for those.
            EngineError: states come with it that are not what is wanted.
        """
        if not self.takes_ids:
            return await self.ask_messages(question, sampling)
        if question.needs_calls:
            raise SkipRow("the prompt is sent as token ids, so that calls of tools in the answer are not told apart")
        return await self.ask_ids(question, sampling)

    async def ask_messages(self, question: Question, sampling: Sampling) -> Answer:
        """Return the answer to a conversation that the engine renders itself.

        Raises:
            AskError: there is none.
        """
        return await self._answered(question, sampling, as_ids=False)

    async def ask_ids(self, question: Question, sampling: Sampling) -> Answer:
        """Return the answer to a conversation as we render it, its text as it is.

        Raises:
            AskError: there is none.
        """
        return await self._answered(question, sampling, as_ids=True)

    async def prove_states(self, questions: Sequence[Question], sampling: Sampling) -> None:
        """Hold the states that come with answers of full length against those of the same tokens read at once.

        The answers are drawn from all of the distribution, and held against what the states make of it.

        Args:
            questions: to be answered.
            sampling: how the run samples.

        Raises:
            AskError: there is no answer, or its tokens are not known.
            EngineError: the states differ, or are not what is wanted; or answers are drawn from something else.
        """
        if self._answering is None:
            return
        plain, drawn = sampling.plain(), []
        for question in questions:
            async with self._answering.request(self.label, whole=True) as asked:
                told = {**asked.fields, "ignore_eos": True}
                answer, reply = await self._asked(question, plain, told, as_ids=self.takes_ids)
                asked.heard(reply)
                ids = question.read_with(answer)
                if ids is None:
                    raise AskError("the answer comes without token ids, by which its states are proven", "odd")
                prompt = len(question.prompt_ids or ())
                drawn.append(await asked.prove(self, ids, prompt, plain.temperature))
        if sampling.says_all:  # else an engine's own default may move the distribution
            self._answering.proof.of_all_drawn(drawn, self.label)

    async def _answered(self, question: Question, sampling: Sampling, *, as_ids: bool) -> Answer:
        if self._answering is None:
            return await self._answered_alone(question, sampling, as_ids=as_ids)
        async with self._answering.request(self.label, whole=question.row is not None) as asked:
            answer, reply = await self._asked(question, sampling, asked.fields, as_ids=as_ids)
            asked.heard(reply)
            if question.row is not None:
                await asked.keep(question.row, question.read_with(answer))
            return answer

    async def _answered_alone(self, question: Question, sampling: Sampling, *, as_ids: bool) -> Answer:
        """Return an answer; states that an engine gives with it though nobody wants them are deleted."""
        named = {"request_id": f"{NAMED}{secrets.token_hex(8)}"} if self.dialect.may_give_states else {}
        answer, reply = await self._asked(question, sampling, named, as_ids=as_ids)
        if named and _names_states(reply):
            from deepspec.gathering.unwanted import dropped  # loads torch

            self.gives_states = True
            self.leaves_states = self.leaves_states or await dropped(reply, named["request_id"], self.label)
        return answer

    async def _asked(
        self, question: Question, sampling: Sampling, more: Mapping[str, Any], *, as_ids: bool
    ) -> tuple[Answer, Response]:
        """Return an answer, and the reply that it was in."""
        request = {**(ids_body if as_ids else body)(question, sampling, self.dialect), **more}
        if as_ids:
            reply = await self.complete(request.pop("prompt"), request)
            return text_answer(reply, self.dialect, self.label), reply
        reply = await self.chat(request.pop("messages"), request)
        return chat_answer(reply, self.dialect, self.label), reply


def _names_states(reply: Response) -> bool:
    told = reply.get("kv_transfer_params")
    return isinstance(told, Mapping) and bool(told.get("hidden_states_path"))


AskedEngines = Dispatcher[Engine, Question, Answer]
"""Several of them."""
