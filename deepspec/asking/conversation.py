"""One sample: every assistant turn asked anew, each on the target's own previous answers.

System prompts, user turns and tool results stay as they are. An assistant turn that called tools is asked with the
tools declared; where the target makes the recorded calls the recorded results follow, otherwise nobody knows what
the tools would have said, and the row is skipped.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from deepspec.asking.judge import check_answer, without_ids
from deepspec.asking.question import Answer, Question, SkipRow
from deepspec.asking.sampling import Sampling
from deepspec.messages.conversations import AnswerRow, Message, PromptRow, Status

Ask = Callable[[Question], Awaitable[Answer]]


async def regenerate_row(row: PromptRow, ask: Ask, sampling: Sampling) -> AnswerRow:
    """Return the sample with the target's own answers, or skipped with the reason.

    Raises:
        AskError: a turn got no answer.
        RowError: an answer cannot be trained on.
    """
    thinking = is_thinking(sampling, row["id"])
    messages: list[Message] = []
    answers: dict[int, Answer] = {}
    last = len(row["messages"]) - 1
    try:
        for index, recorded in enumerate(row["messages"]):
            if recorded["role"] != "assistant":
                messages.append(recorded)
                continue
            answer = await ask(
                Question(
                    messages=list(messages),
                    tools=row.get("tools") or [],
                    seed=turn_seed(sampling.seed, row["id"], index),
                    thinking=thinking,
                    needs_calls="tools" in row and index != last,
                    row=row["id"] if index == last else None,
                )
            )
            check_answer(answer)
            answers[index] = answer
            messages.append(_answered(answer, recorded, is_last=index == last))
    except SkipRow as skip:
        return without_answer(row, "skipped", str(skip), thinking)
    if not answers:
        return without_answer(row, "skipped", "no assistant turn to answer", thinking)
    answered = _success(row, messages, answers, thinking)
    if sampling.chat_template_kwargs:
        answered["chat_template_kwargs"] = sampling.chat_template_kwargs
    return answered


def without_answer(row: PromptRow, status: Status, reason: str, thinking: bool) -> AnswerRow:
    """Return the row of a sample that was not answered: the prompt as it was, and why."""
    return answer_row(
        row,
        messages=row["messages"],
        status=status,
        finish_reasons=[],
        thinking=thinking,
        generated=[],
        error=reason,
    )


def is_thinking(sampling: Sampling, sample_id: str) -> bool:
    """Return whether a sample is answered in thinking mode: the same at every run."""
    return _fraction(f"{sampling.seed}:{sample_id}:thinking") < sampling.thinking_share


def turn_seed(seed: int, sample_id: str, turn: int) -> int:
    """Return the seed of one turn of one sample, below 2**31: a re-run asks the same."""
    return int(_fraction(f"{seed}:{sample_id}:{turn}") * 2**31)


def _fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def answer_row(row: PromptRow, **fields: Any) -> AnswerRow:
    """Return an answer to a prompt: what identifies the prompt, then the fields."""
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return cast(AnswerRow, {"id": row["id"], "split": row["split"], "source": row["source"], **tools, **fields})


def _success(row: PromptRow, messages: list[Message], answers: Mapping[int, Answer], thinking: bool) -> AnswerRow:
    turns = answers.values()
    answered = answer_row(
        row,
        messages=messages,
        status="success",
        finish_reasons=[answer.finish_reason for answer in turns],
        thinking=thinking,
        generated=list(answers),
        usage={
            "prompt_tokens": sum(answer.prompt_tokens for answer in turns),
            "completion_tokens": sum(answer.completion_tokens for answer in turns),
        },
        endpoint=", ".join(dict.fromkeys(answer.endpoint for answer in turns)),
    )
    reasoning = {str(index): answer.reasoning for index, answer in answers.items() if answer.reasoning}
    if reasoning:
        answered["reasoning"] = reasoning
    token_ids = [answer.token_ids for answer in turns if answer.token_ids is not None]
    if len(token_ids) == len(answers):
        answered["token_ids"] = token_ids
    else:
        for answer in turns:
            check_answer(without_ids(answer))
    return answered


def _answered(answer: Answer, recorded: Message, *, is_last: bool) -> Message:
    """Return the message that goes on in the place of the recorded one.

    Raises:
        SkipRow: what follows in the record does not fit the answer.
    """
    message: Message = {"role": "assistant", "content": answer.content}
    wanted = recorded.get("tool_calls") or []
    if is_last:
        return {**message, "tool_calls": answer.tool_calls} if answer.tool_calls else message
    if _calls(answer.tool_calls) != _calls(wanted):
        raise SkipRow("tool calls differ from the recorded ones" if wanted else "calls tools without recorded results")
    return {**message, "tool_calls": wanted} if wanted else message  # recorded ids: the results refer to them


def _calls(calls: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return name and arguments of each call, so that ids and the spelling of JSON do not matter."""
    return [(call["function"]["name"], _arguments(call["function"].get("arguments"))) for call in calls]


def _arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments
