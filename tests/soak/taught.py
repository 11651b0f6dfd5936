"""A target that is taught rows in seconds, and what soaks of real engines ask of it.

Drafts learn nothing of what a random target answers, and what is never accepted tells nothing of an engine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deepspec.artifacts import Artifact
from deepspec.benchmark.asked import first_turns
from deepspec.placement import Endpoint, Placement
from deepspec.serving.check import DecodedPrompt, against_ours, in_turn
from deepspec.serving.client import ServedAnswer, ServingClient
from deepspec.target.load import load_template
from tests.given.targets import tiny

STEPS = 400
SPREAD = 0.5
"""Of the weights of the target's final norm: what reads the state on its other side reads another one."""
LONGEST = 24
"""Tokens of an answer."""
QUESTIONS = [f"say {n}" for n in range(0, 60, 3)] + ["say 77", "2+2?", "what is 3+4?"]


def teach(model: Any) -> None:
    """Teach a model the rows of the chain, around a final norm whose weights are wide apart."""
    rows = [
        f"<|im_start|>user\nsay {n}<|im_end|>\n<|im_start|>assistant\n{n} and {n * n}.<|im_end|>\n" for n in range(60)
    ]
    ids = [tiny.tokenizer()(row, add_special_tokens=False).input_ids for row in rows]
    longest = max(map(len, ids))
    padded = torch.tensor([row + [-100] * (longest - len(row)) for row in ids])
    model.model.norm.weight.detach().normal_(std=SPREAD)
    model.model.norm.requires_grad_(False)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-3)
    for _ in range(STEPS):
        chosen = padded[torch.randint(len(padded), (16,))]
        model(input_ids=chosen.clamp(min=0), labels=chosen).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def decoded(made: Mapping[str, Artifact], folder: Path) -> list[DecodedPrompt]:
    """Return what the evaluation decoded."""
    scores = made["evaluate"]
    places = {each["digest"]: str(folder / "benchmarks" / "sums.jsonl") for each in scores.manifest.spec["benchmarks"]}
    placement = Placement(scratch=folder / "scratch", locations=places)
    return first_turns(scores, placement, load_template(folder / "target"), len(QUESTIONS))


def check_alike(
    engine: str,
    answers: Sequence[ServedAnswer],
    plains: Sequence[ServedAnswer],
    asked: list[DecodedPrompt],
    exact: bool,
) -> None:
    """Check that an engine with a draft answers as without, and accepts what decoding here accepts.

    Args:
        engine: its name.
        answers: with the draft.
        plains: without it.
        asked: the prompts, and what decoding here made of them.
        exact: whether both compute in fp32, so that greedy rounds are the very same.
    """
    found = against_ours(engine, answers, plains, asked)
    assert found is not None
    print(found.model_dump_json())
    assert 0.1 < found.accept_rate < 0.95
    assert found.agrees
    assert found.same_answers == len(asked) == len(QUESTIONS)
    assert [each.text for each in answers] == [each.text for each in plains]
    if exact:
        assert rounds_of(answers) == [len(each.decoded.rounds) for each in asked]


def rounds_of(answers: Sequence[ServedAnswer]) -> list[int]:
    """Return the rounds of each answer."""
    return [each.rounds for each in answers]


async def answers_of(endpoint: Endpoint, asked: list[DecodedPrompt]) -> list[ServedAnswer]:
    async with ServingClient(endpoint) as client:
        return await in_turn(client, asked, LONGEST)
