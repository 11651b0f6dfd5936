"""Writes the bundled prompts: templates and word lists of our own, filled in by a seeded generator.

    python -m deepspec.prepare.demo.write

The same code always writes the same bytes; a test compares them with the files beside this one. What a prompt is about
(its subject: a function, a topic, a sentence) is either trained on or held out, never both in other words.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from deepspec.lines.rows import write_rows
from deepspec.prepare.demo import BENCHMARKS, PROMPTS
from deepspec.prepare.demo import words as w

DemoRequest = Callable[[random.Random], tuple[str, str]]
"""Draws a prompt and returns its subject and its text."""

TRAINING, HELD_OUT = 70, 12
"""Prompts of each kind."""

HELD_OUT_SUBJECTS = 0.2
"""Chance of a subject to be held out."""

DRAWS = 600
"""Draws from each kind, of which the first different ones are taken."""

SEED = 20


def _arithmetic(pick: random.Random) -> tuple[str, str]:
    """Return a word problem of one or two steps."""
    name, thing = pick.choice(w.NAMES), pick.choice(w.THINGS)
    a, b, c = pick.randint(12, 60), pick.randint(2, 11), pick.randint(2, 9)
    text = pick.choice(w.PROBLEMS).format(name=name, thing=thing, a=a, b=b, c=c, product=b * c)
    return text, text


def _code(pick: random.Random) -> tuple[str, str]:
    """Return a request for one short Python function."""
    name, task = pick.choice(w.FUNCTIONS)
    return name, pick.choice(w.CODE_REQUESTS).format(name=name, task=task)


def _chat(pick: random.Random) -> tuple[str, str]:
    """Return a question that one could ask anybody."""
    frame, fillers = pick.choice(w.QUESTIONS)
    topic = pick.choice(fillers)
    return topic, frame.format(topic)


def _lists(pick: random.Random) -> tuple[str, str]:
    """Return a request for a list, a sequence or a table."""
    request, group = pick.choice(w.LIST_REQUESTS), pick.choice(w.GROUPS)
    start, count, number = pick.randint(1, 40), pick.randint(4, 10), pick.randint(2, 25)
    text = request.format(count=count, group=group, start=start, end=start + 2 * count, number=number)
    return group if "{group}" in request else text, text


def _rewriting(pick: random.Random) -> tuple[str, str]:
    """Return a sentence or two to be changed in one named way."""
    sentence = pick.choice(w.SENTENCES).format(name=pick.choice(w.NAMES), place=pick.choice(w.PLACES))
    return sentence, pick.choice(w.CHANGES).format(sentence=sentence, second=pick.choice(w.FOLLOW_UPS))


KINDS: Mapping[str, DemoRequest] = {
    "arithmetic": _arithmetic,
    "code": _code,
    "chat": _chat,
    "lists": _lists,
    "rewriting": _rewriting,
}


def _prompts(kind: str) -> tuple[list[str], list[str]]:
    """Return the training and the held-out prompts of one kind, no prompt twice."""
    pick = random.Random(f"{SEED}:{kind}")
    drawn = dict.fromkeys(KINDS[kind](pick) for _ in range(DRAWS))
    training = [text for subject, text in drawn if not _is_held_out(subject)]
    held_out = [text for subject, text in drawn if _is_held_out(subject)]
    return training[:TRAINING], held_out[:HELD_OUT]


def write(training: Path = PROMPTS, benchmarks: Path = BENCHMARKS) -> None:
    """Write the training file and the folder of held-out files."""
    drawn = {kind: _prompts(kind) for kind in KINDS}
    rows = [{"prompt": text, "source": kind} for kind, (texts, _) in drawn.items() for text in texts]
    random.Random(SEED).shuffle(rows)
    write_rows(training, rows)
    benchmarks.mkdir(exist_ok=True)
    for kind, (_, held_out) in drawn.items():
        write_rows(benchmarks / f"{kind}.jsonl", [{"turns": [text]} for text in held_out])


def _is_held_out(subject: str) -> bool:
    return random.Random(f"{SEED}:{subject}").random() < HELD_OUT_SUBJECTS


if __name__ == "__main__":
    write()
