"""Which answers can be trained on: those to the prompt that the target was given here, and whose tokens are known."""

from dataclasses import replace

from deepspec.asking.question import Answer, Question
from deepspec.errors import RowError
from deepspec.messages.finish import LENGTH, TOOL_CALLS

PROMPT_DRIFTED = "prompt_drifted"
"""Reason of an answer to another prompt."""
EMPTY_TOKENS = 2
"""Tokens that an empty answer can have: its stop token, and what a template puts behind it."""


def check_prompt(question: Question, answer: Answer) -> None:
    """Refuse an answer to another prompt than the target's own template renders.

    Raises:
        RowError: the engine read another number of tokens.
    """
    if question.prompt_ids is None or answer.prompt_tokens in (0, len(question.prompt_ids)):  # 0: it does not count
        return
    raise RowError(
        PROMPT_DRIFTED,
        f"the engine read {answer.prompt_tokens} tokens of a prompt that has {len(question.prompt_ids)}: "
        "it cut it, or renders it otherwise",
    )


def check_answer(answer: Answer) -> None:
    """Refuse an answer whose tokens cannot be told from what the engine gives of it.

    Raises:
        RowError: it is empty but its tokens were not (`empty_answer`), holds only reasoning (`only_reasoning`), or ends
            in calls that are not there (`odd_answer`). None of these where the engine gives the token ids.
    """
    if answer.token_ids or answer.tool_calls:
        return
    if answer.finish_reason == TOOL_CALLS:
        raise RowError("odd_answer", "the answer ends in calls of tools, and holds none")
    if answer.content.strip():
        return
    if answer.finish_reason == LENGTH:
        where = "inside its reasoning" if answer.reasoning else "before it said anything"
        raise RowError("empty_answer", f"the answer is empty: max_tokens cut it {where}")
    if answer.reasoning:
        raise RowError("only_reasoning", "only reasoning, no content")
    if not answer.content and answer.completion_tokens > EMPTY_TOKENS:
        raise RowError(
            "empty_answer", f"the answer is empty, though the engine counts {answer.completion_tokens} tokens"
        )


def without_ids(answer: Answer) -> Answer:
    """Return an answer as if the engine gave no token ids."""
    return replace(answer, token_ids=None)
