"""One endpoint as regeneration asks it: conversations, or prompts as token ids."""

from deepspec.asking.dialects import OTHER, body, ids_body
from deepspec.asking.question import Answer, Question, SkipRow
from deepspec.asking.replies import chat_answer, text_answer
from deepspec.asking.sampling import Sampling
from deepspec.engines.client import Client
from deepspec.engines.dispatcher import Dispatcher
from deepspec.placement import Endpoint


class Engine(Client):
    """A client of one endpoint that answers questions.

    Args:
        endpoint: where it is and which model it serves.
        deadline: seconds after which a request is given up.
    """

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        """Make the client; nothing is sent yet."""
        super().__init__(endpoint, deadline)
        self.dialect = OTHER
        self.takes_ids = False
        """Whether prompts are sent as token ids: its template would print another date than ours."""

    async def ask(self, question: Question, sampling: Sampling) -> Answer:
        """Return the target's answer to one question.

        Raises:
            AskError: there is none; says whose fault it is.
            SkipRow: the sample goes on with calls of tools, and answers to token ids are not parsed for those.
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
        request = body(question, sampling, self.dialect)
        extra = {key: value for key, value in request.items() if key != "messages"}
        return chat_answer(await self.chat(request["messages"], extra), self.dialect, self.label)

    async def ask_ids(self, question: Question, sampling: Sampling) -> Answer:
        """Return the answer to a conversation as we render it, its text as it is.

        Raises:
            AskError: there is none.
        """
        request = ids_body(question, sampling, self.dialect)
        extra = {key: value for key, value in request.items() if key != "prompt"}
        return text_answer(await self.complete(request["prompt"], extra), self.dialect, self.label)


Asked = Dispatcher[Engine, Question, Answer]
"""Several of them."""
