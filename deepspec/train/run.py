"""The train stage: a target cache in, a draft out.

Every rank calls `run` with the same arguments; the first one saves states, writes files and speaks.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file

from deepspec.algorithms import ALGORITHMS
from deepspec.artifacts import Artifact, Placement, Report
from deepspec.errors import SourceError
from deepspec.formats.draft import save_draft
from deepspec.formats.target_cache import TargetCache
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.target.live import open_cache
from deepspec.train.bigrams import start_markov_head
from deepspec.train.checkpoint import Checkpoints, Saved
from deepspec.train.data import CacheSplit
from deepspec.train.loop import Loop
from deepspec.train.narrator import Narrator
from deepspec.train.previous import STATE, begin_with_previous
from deepspec.train.ranks import Ranks
from deepspec.train.spec import TrainSpec
from deepspec.train.start import fresh_draft, target_folder
from deepspec.train.task import Task
from deepspec.train.validation import Validation

METRICS = "metrics.jsonl"
CURVE = "learning_curve.png"
MICRO_BATCH = 8
"""Samples of a forward pass where the placement does not say."""


def run(
    spec: TrainSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Train a draft and write it, or go on where an earlier attempt was interrupted.

    Returns:
        Counts for the manifest; the same on every rank, but for times.

    Raises:
        CancelledError: asked to stop by SIGTERM; the state is saved.
        TrainingError: it cannot go on.
    """
    ranks = Ranks(placement.device)
    try:
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)
        cache = open_cache(inputs["target_cache"], placement, spec.source, on_corrupt=spec.on_corrupt)
        loop = make_loop(spec, cache, ranks, placement, report.log)
        if ranks.first:
            with _saves(spec, out, report) as saves:
                loop.resume(_start(loop, saves, out, placement, report))
                loop.run(saves.last, _listener(saves, Narrator(report)))
                _keep(loop, saves)
            _write(loop, out, report)
        else:
            loop.resume(None)
            loop.run(None, None)
        for damage in cache.quarantined.values():
            report.log(f"left out: {damage}")
        ranks.wait()
        return _counts(loop, cache)
    finally:
        ranks.leave()


def make_loop(
    spec: TrainSpec, cache: TargetCache, ranks: Ranks, placement: Placement, log: Callable[[str], None]
) -> Loop:
    """Return the loop at its beginning."""
    train = CacheSplit(cache, "train", spec.seed, spec.window)
    held_out = CacheSplit(cache, "validation", spec.seed, spec.window)
    if len(train) == 0:
        raise SourceError("the cache has no sample in its training split; prepare more prompts")
    if ranks.count > spec.global_batch:
        raise SourceError(f"{ranks.count} ranks share a global batch of {spec.global_batch}; take fewer ranks")
    model = fresh_draft(spec, cache.facts, target_folder(cache.facts, placement), log)
    if ranks.first:  # the others are given its weights
        start_markov_head(model, train, spec.bigram_samples)
    model = model.to(ranks.device)
    task = Task(
        spec=spec, config=model.config, model=model, algorithm=ALGORITHMS[spec.draft.algorithm], device=ranks.device
    )
    size = placement.micro_batch or MICRO_BATCH
    loop = Loop(task, train, ranks, size)
    if spec.validation_samples and len(held_out):
        loop.validation = Validation(task, held_out, ranks, size)
    return loop


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saves:
    """Where states are saved."""

    last: Checkpoints
    """Those to go on from."""
    best: Checkpoints | None
    """That of the lowest held-out loss, where the spec keeps it."""


@contextmanager
def _saves(spec: TrainSpec, out: Out, report: Report) -> Iterator[_Saves]:
    """Open the saved states: in local scratch, or in a remote store, so that another machine can go on."""
    store, prefix = (Store(out.scratch), "checkpoints")
    if not out.store.local:
        store, prefix = out.store, f"{out.prefix}/checkpoints/{out.scratch.name}"
    work = out.scratch / "saving"
    last = Checkpoints(store, f"{prefix}/last", work / "last", spec.keep_checkpoints, report.log)
    best = Checkpoints(store, f"{prefix}/best", work / "best", 1, report.log) if spec.keep == "best" else None
    with closing(last), closing(best) if best is not None else nullcontext():
        yield _Saves(last=last, best=best)


def _start(loop: Loop, saves: _Saves, out: Out, placement: Placement, report: Report) -> Saved | None:
    """Return the state to go on from, or give the loop the weights that its spec begins with."""
    saved = saves.last.newest()
    told = (
        begin_with_previous(loop, out, placement)
        if saved is None
        else f"going on after step {saved.step} of {loop.total}"
    )
    if told is not None:
        report.log(told)
    return saved


def _listener(saves: _Saves, narrator: Narrator) -> Callable[[Loop], None]:
    """Return what is called after each step, before its state is saved to go on from."""

    def on_step(loop: Loop) -> None:
        if saves.best is not None and loop.has_improved():
            saves.best.save(loop.state())
            saves.best.finish()
        narrator(loop)

    return on_step


def _keep(loop: Loop, saves: _Saves) -> None:
    """Give the loop the weights that become the draft."""
    best = None if saves.best is None else saves.best.newest()
    if best is not None:
        loop.optimizer.load(best.tensors)


def _write(loop: Loop, out: Out, report: Report) -> None:
    """Write the draft, its metrics, its curve, and the state from which training can be continued."""
    out.folder.mkdir(parents=True, exist_ok=True)
    save_draft(loop.task.model, out.folder)
    out.file(METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in loop.progress.rows))
    out.file(CURVE).write_bytes(Narrator(report).draw(loop))
    save_file(loop.optimizer.state(), out.file(STATE))


def _counts(loop: Loop, cache: TargetCache) -> dict[str, Any]:
    """Return what the manifest tells of the run."""
    looks = loop.progress.looks()
    losses = [row["loss"] for row in loop.progress.rows if row["split"] == "train" and "loss" in row]
    return {
        "target": cache.facts.target.model_dump(),
        "layers": list(cache.facts.layers),
        "algorithm": loop.task.config.algorithm,
        "parameters": loop.optimizer.size,
        "steps": loop.progress.step,
        "samples": loop.progress.samples,
        "tokens": loop.progress.tokens,
        "quarantined": len(cache.quarantined),
        "skipped_steps": loop.guard.skipped,
        "spikes": loop.guard.spikes,
        "loss": losses[-1] if losses else None,
        "untrained": looks[0] if looks else None,
        "held_out": _look_kept(loop),
        "seconds": round(loop.clock.training, 1),
        "tokens_per_second": round(loop.clock.tokens_per_second, 1),
        "data_wait_share": round(loop.data_wait_share, 4),
    }


def _look_kept(loop: Loop) -> dict[str, Any] | None:
    """Return the look at the weights that became the draft."""
    looks = loop.progress.looks()
    if loop.task.spec.keep == "best":
        return loop.progress.best_look()
    return looks[-1] if looks else None
