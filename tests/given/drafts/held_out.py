"""Answers of tiny targets as training reads them, and the walker over them."""

from collections.abc import Sequence
from typing import Any

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.proposers.propose import NoProposer, Proposer
from deepspec.records.batch import Batch, Record, collate, supervises
from deepspec.rounds.decoded import Decoded, Prompt, Settings
from deepspec.target.load import Target
from deepspec.target_cache.facts import Sampled
from deepspec.walk.walker import Walker

LAYERS = (-1, 1)


def decoded(
    target: Target, prompts: Sequence[Sequence[int]], proposer: Proposer | None = None, **settings: Any
) -> list[Decoded]:
    """Return what is decoded behind each prompt, by the target alone where no proposer is given."""
    how = Settings(**{"max_new_tokens": 40, **settings})
    proposer = NoProposer() if proposer is None else proposer
    stops = target.stop_ids if how.stop else frozenset[int]()
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, how, stops, batch=64)
    asked = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(prompts)]
    return sorted(decoder.decode(asked), key=lambda each: int(each.sample_id))


def record(
    target: Target, name: str, prompt: Sequence[int], answer: Sequence[int], layers: Sequence[int] = LAYERS
) -> Record:
    """Return a conversation as the cache would give it, its states in fp32."""
    ids = torch.tensor([*prompt, *answer])
    mask = torch.arange(len(ids)) >= len(prompt)
    with torch.no_grad():
        hidden, last = target.capture(ids[None], layers)
    return Record(
        sample_id=name, input_ids=ids, loss_mask=mask, hidden=hidden[0], last_hidden=last[0][supervises(mask)]
    )


def batch_of(
    target: Target, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], draft: Any = None
) -> Batch:
    """Return conversations with the states that a draft reads; None: one that reads the layers of the most."""
    layers = LAYERS if draft is None else draft.config.target_layer_ids
    pairs = zip(prompts, answers, strict=True)
    return collate([record(target, str(number), *pair, layers) for number, pair in enumerate(pairs)])


def walker(draft: Any, target: Target, sampled: Sampled | None = None, **changes: Any) -> Walker:
    algorithm = ALGORITHMS[draft.config.algorithm]
    told = {"most": 512, "at_once": 7, "stop_ids": target.stop_ids, **changes}
    return Walker(algorithm=algorithm, slots=algorithm.slots(draft.config), sampled=sampled, **told)
