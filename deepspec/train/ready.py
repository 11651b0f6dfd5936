"""A loop that can begin: what is trained on which samples, how steps are cut and read, and what it is judged by."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.artifacts import Artifact
from deepspec.attention.flex import check_heads
from deepspec.errors import SourceError
from deepspec.models.compiled import PAYS_FROM, compile_draft
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.records.stream import Cut
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import Pace, steps_told
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.kinds import read_kinds
from deepspec.target_cache.split import CacheSplit
from deepspec.train.accepted import AnswersKnown
from deepspec.train.checked import check_supervised
from deepspec.train.loop import Loop
from deepspec.train.memory import fitting_micro_batch, free_memory
from deepspec.train.narrator import silent
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task, draft_of
from deepspec.train.validation import HeldOut

FETCH_EVERY = 16
"""Steps whose losses are fetched from a card together, where the placement says nothing."""
READERS = 4
"""Threads that read for a card, at most: zstd gives some 1 GB/s of states each."""
AHEAD_SHARE, MOST_AHEAD, PINNED = 0.1, 4 << 30, 2
"""Share of the host's free memory, and bytes, that states read ahead take at most; and how many times their bytes
pinned memory takes at most, for torch rounds a piece of it up to a power of two."""
GREEDY = "greedy_cache"
"""Name of the input with the target's greedy answers to held-out prompts."""


def judged(loop: Loop, inputs: Mapping[str, Artifact], cache: TargetCache, placement: Placement) -> Loop:
    """Return a loop at its beginning once it knows what its looks walk over.

    Args:
        loop: at its beginning.
        inputs: by name: the target cache, and that of greedy answers where there is one.
        cache: the first of them, open.
        placement: where it runs.

    Raises:
        SourceError: greedy answers are of another target, or of other layers.
    """
    loop.answered = _answered(inputs["target_cache"], cache)
    if GREEDY in inputs and loop.held_out is not None:
        loop.greedy = _greedy(loop.task.spec, inputs[GREEDY], cache, placement)
    return loop


def make_loop(
    spec: TrainSpec,
    cache: TargetCache,
    ranks: Ranks,
    placement: Placement,
    log: Callable[[str], None],
    *,
    goes_on: bool = False,
) -> Loop:
    """Return the loop at its beginning.

    Args:
        spec: what is trained.
        cache: on which samples.
        ranks: who shares the work.
        placement: where it runs.
        log: told what was chosen.
        goes_on: whether the weights of a saved state take the place of the draft's own: nothing is read for a start.

    Raises:
        SourceError: there is nothing to train on, or fewer samples a step than ranks.
    """
    train = CacheSplit(cache, "train", spec.seed, spec.window)
    held_out = CacheSplit(cache, "validation", spec.seed, spec.window)
    if len(train) == 0:
        raise SourceError("the cache has no sample in its training split; prepare more prompts")
    check_supervised(cache, "train", *(["validation"] if spec.validation_samples else []))
    if ranks.count > spec.global_batch:
        raise SourceError(f"{ranks.count} ranks share a global batch of {spec.global_batch}; take fewer ranks")
    if spec.global_batch > len(train):
        log(
            f"a step takes {spec.global_batch} samples (train.global_batch) and there are {len(train)} in the training "
            f"split: each of them {spec.global_batch / len(train):.1f} times a step, whatever train.epochs says"
        )
    model = draft_of(spec.of_given_weights() if goes_on else spec, cache.facts, train, ranks, placement, log)
    if ranks.device.type == "cuda":
        check_heads(model.config.block.head_dim)
    task = Task(
        spec=spec,
        config=model.config,
        model=model,
        algorithm=ALGORITHMS[spec.draft.algorithm],
        device=ranks.device,
        measured=not model.config.reduced_vocabulary,
    )
    ranks.wait()  # what the first one did alone may have taken long
    cut = Cut(ranks=ranks.count, micro_batch=placement.micro_batch or 1, pack=placement.pack)
    loop = Loop(task, train, ranks, cut, _pace(spec, placement, ranks))
    loop.note = cache.note
    if ranks.device.type == "cuda" and loop.total * spec.global_batch // ranks.count >= PAYS_FROM:
        compile_draft(model)
        log("the draft is compiled for the card: the first step of each kind of shape takes a minute or more")
    loop.fetch_every = placement.fetch_every or (1 if ranks.device.type == "cpu" else FETCH_EVERY)
    if placement.micro_batch is None:
        most = fitting_micro_batch(task, train, loop.cut, log if ranks.first else silent, loop.optimizer)
        loop.cut = replace(loop.cut, micro_batch=ranks.least(most))
    if spec.validation_samples and len(held_out):
        loop.held_out = held_out
    elif spec.keep == "best" or spec.patience is not None:
        log(f"nothing to judge by: {_unjudged(spec)}; the cache has no sample in its validation split (prepare.splits)")
    return loop


def _answered(artifact: Artifact, cache: TargetCache) -> AnswersKnown:
    """Return what a cache tells of its answers."""
    stops, kinds = frozenset(cache.facts.stop_ids or ()), read_kinds(artifact)
    return AnswersKnown(sampled=cache.facts.sampled, stop_ids=stops, kinds=kinds)


def _greedy(spec: TrainSpec, artifact: Artifact, cache: TargetCache, placement: Placement) -> HeldOut:
    """Return greedy answers to held-out prompts; their states are stored, wherever those of training come from.

    Raises:
        SourceError: they are of another target, or of other layers.
    """
    beside = open_cache(artifact, placement, on_corrupt=spec.on_corrupt)
    ours, theirs = cache.facts, beside.facts
    if (ours.target, ours.layers) != (theirs.target, theirs.layers):
        raise SourceError(
            f"{artifact.prefix} holds greedy answers of another target, or its states in other layers "
            f"({theirs.layers}), than the cache that is trained on ({ours.layers}); make both from one plan"
        )
    check_supervised(beside, "validation")
    split = CacheSplit(beside, "validation", spec.seed, spec.window)
    return HeldOut(samples=split, answered=_answered(artifact, beside), most=spec.greedy_samples)


def _pace(spec: TrainSpec, placement: Placement, ranks: Ranks) -> Pace:
    """Return how far and how wide each rank reads ahead: cores and free memory are shared by those of a machine."""
    card = ranks.device.type == "cuda"
    here = max(1, ranks.count // ranks.machines)
    spare = max(1, min(READERS, (os.cpu_count() or 1) // here - 1))
    room = int(AHEAD_SHARE * free_memory(torch.device("cpu")) / here)
    room //= PINNED if card else 1
    own = max(1, spec.global_batch // ranks.count)
    return Pace(
        workers=placement.readers or (spare if card else 1),
        bytes_ahead=min(room, MOST_AHEAD),
        steps_told=steps_told(len(placement.endpoints), own) if spec.source == "engine" else 0,
        pinned=card,
    )


def _unjudged(spec: TrainSpec) -> str:
    """Return what comes of settings that judge by held-out samples where there are none."""
    told = ["the weights of the last step become the draft (train.keep=best)"] if spec.keep == "best" else []
    return " and ".join([*told, "training goes on to its last step (train.patience)"] if spec.patience else told)
