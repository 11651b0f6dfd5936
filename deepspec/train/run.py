"""The train stage: a target cache in, a draft out.

Every rank calls `run` with the same arguments; the first one saves states, writes files and speaks.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.artifacts import Artifact
from deepspec.attention.flex import check_heads
from deepspec.checkpoint.draft import save_draft
from deepspec.errors import SourceError
from deepspec.models.compiled import PAYS_FROM, compile_draft
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.records.stream import Cut
from deepspec.report import Report
from deepspec.start.begin import earlier_weights
from deepspec.start.previous import STATE
from deepspec.steps.checkpoint import Checkpoints, Retention, SavedState, Saves, seconds_to_save, write_tensors
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import Pace, steps_told
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.kinds import read_kinds
from deepspec.target_cache.split import CacheSplit
from deepspec.train.accepted import AnswersKnown
from deepspec.train.loop import Loop
from deepspec.train.memory import fitting_micro_batch, free_bytes
from deepspec.train.narrator import Narrator
from deepspec.train.spec import TrainSpec
from deepspec.train.stored_states import check_states
from deepspec.train.supervised import check_supervised
from deepspec.train.task import Task, draft_of
from deepspec.train.trackers import Trackers
from deepspec.train.validation import HeldOut
from deepspec.watch.meter import peak_memory
from deepspec.watch.trace import traced

METRICS = "metrics.jsonl"
CURVE = "learning_curve.png"
FETCH_EVERY = 16
"""Steps whose losses are fetched from a card together, where the placement says nothing."""
READERS = 4
"""Threads that read for a card, at most: zstd gives some 1 GB/s of states each."""
AHEAD_SHARE, MOST_AHEAD = 0.1, 4 << 30
"""Share of the host's free memory, and bytes, that states read ahead take at most."""
ENGINES_SHARE = 0.25
"""Share of the host's free memory that states take at most which engines gave and training has not read yet."""
GREEDY = "greedy_cache"
"""Name of the input with the target's greedy answers to held-out prompts."""
GATE_POOL = 64
"""Samples of which the shortest are computed again by the target."""


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
    ranks = Ranks(placement.draft_device)
    try:
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)
        with _opened(spec, inputs["target_cache"], out, ranks, placement, report) as cache:
            if ranks.first:
                _check_cache(spec, inputs["target_cache"], cache, placement, report)
            loop = make_loop(spec, cache, ranks, placement, report.log)
            loop.answered = _answered(inputs["target_cache"], cache)
            if GREEDY in inputs and loop.held_out is not None:
                loop.greedy = _greedy(spec, inputs[GREEDY], cache, placement)
            kept = _lead(loop, out, placement, report) if ranks.first else _follow(loop, placement)
            for line in cache.told():
                report.log(line)
            ranks.wait()
            return _counts(loop, cache, kept)
    finally:
        ranks.leave()


def _opened(
    spec: TrainSpec, artifact: Artifact, out: Out, ranks: Ranks, placement: Placement, report: Report
) -> AbstractContextManager[TargetCache]:
    """Return the cache as training reads it, for as long as the block runs."""
    if spec.source != "engine":
        return nullcontext(open_cache(artifact, placement, spec.source, on_corrupt=spec.on_corrupt))
    from deepspec.gathering.live import StatesRoom, engine_cache  # loads the client of engines, which takes a second

    here = max(1, ranks.count // ranks.machines)
    free = free_bytes(torch.device("cpu"))
    room = StatesRoom(
        ahead=min(placement.staging_limit, int(ENGINES_SHARE * free)) // here,
        folder=out.scratch / "states",
        kept=spec.keep_states,
        sharers=here,
        proves=ranks.rank % here == 0,
    )
    own = placement.model_copy(update={"staging_limit": placement.staging_limit // here})
    return engine_cache(artifact, spec, room, own, report)


def _lead(loop: Loop, out: Out, placement: Placement, report: Report) -> int:
    """Train as the rank that saves, writes and speaks; return the step whose weights became the draft."""
    narrator = Narrator(report)
    trackers = Trackers(placement.trackers, f"train-{out.address}", placement.scratch / "trackers")

    def tell(loop: Loop) -> None:
        narrator(loop)
        trackers(loop)

    with trackers, _saves(loop.task.spec, out, loop.ranks, report) as saves:
        begin = _start(loop, saves, out, placement, report)
        loop.resume(begin, micro_batch=placement.micro_batch, pack=placement.pack, log=report.log)
        if saves.best is not None:
            saves.best.drop_after(loop.progress.step)
        report.saving(seconds_to_save(loop.optimizer.state_bytes, saves))
        narrator.begin(loop)
        trackers.begin(loop)
        with _traced(loop, out, placement, report) as loop.after_step:
            loop.run(saves, tell)
        kept = _keep_best(loop, saves, report.log)
    _write(loop, out, report)
    return kept


def _traced(loop: Loop, out: Out, placement: Placement, report: Report) -> AbstractContextManager[Callable[[], object]]:
    """Return the block in which steps are traced, if they are."""
    if not placement.profile:
        return nullcontext(loop.after_step)
    return traced(out, loop.task.device, loop.total - loop.progress.step, report.log)


def _follow(loop: Loop, placement: Placement) -> int:
    """Train as any other rank: whatever the first one does with all of them is done here, too."""
    loop.resume(None, micro_batch=placement.micro_batch, pack=placement.pack)
    loop.run(None)
    kept = _keep_best(loop, None, _silent)
    loop.optimizer.state()
    return kept


def _check_cache(spec: TrainSpec, artifact: Artifact, cache: TargetCache, placement: Placement, report: Report) -> None:
    """Let the target say a few stored samples again; the shortest of the first epoch's beginning cost least.

    Raises:
        SpecError: the objective asks for states that the cache does not have.
        ParityError: they differ.
    """
    if spec.source != "cache":
        return
    cache.facts.check_supervises(artifact.prefix, behind_the_end=spec.objective.looks_behind_the_end)
    if not spec.parity_samples:
        return
    begin = CacheSplit(cache, "train", spec.seed, spec.window).order(0)[:GATE_POOL]
    shortest = sorted(begin, key=lambda number: int(cache.index.lengths[number]))[: spec.parity_samples]
    off = check_states(artifact, cache, shortest, placement)
    if off is not None:
        report.log(f"the cache agrees with its target: {len(shortest)} samples computed again, off by {off:.1g}")


def make_loop(
    spec: TrainSpec, cache: TargetCache, ranks: Ranks, placement: Placement, log: Callable[[str], None]
) -> Loop:
    """Return the loop at its beginning."""
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
    model = draft_of(spec, cache.facts, train, ranks, placement, log)
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
        most = fitting_micro_batch(task, train, loop.cut, log if ranks.first else _silent)
        loop.cut = replace(loop.cut, micro_batch=ranks.least(most))
        loop.optimizer.forget()
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
    room = int(AHEAD_SHARE * free_bytes(torch.device("cpu")) / here)
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


def _silent(_message: str) -> None:
    """Say nothing: the first rank speaks."""


@contextmanager
def _saves(spec: TrainSpec, out: Out, ranks: Ranks, report: Report) -> Iterator[Saves]:
    """Open the saved states: in local scratch, or in a shared store, so that another machine can go on."""
    store, prefix = (Store(out.scratch), "checkpoints")
    if not out.store.local or ranks.machines > 1:
        store, prefix = out.store, f"{out.prefix}/checkpoints/{out.scratch.name}"
    work = out.scratch / "saving"
    keep = Retention(last=spec.keep_checkpoints, every=spec.keep_every)
    last = Checkpoints(store, f"{prefix}/last", work / "last", keep, report.log)
    best = Checkpoints(store, f"{prefix}/best", work / "best", Retention(last=1), report.log)
    with closing(last), closing(best):
        yield Saves(last=last, best=best if spec.keep == "best" else None)


def _start(loop: Loop, saves: Saves, out: Out, placement: Placement, report: Report) -> SavedState | None:
    """Return the state to go on from, or the one that the spec begins with."""
    saved = saves.last.newest()
    if saved is None:
        tensors = earlier_weights(loop.task.spec, loop.total, out, placement, report.log)
        return None if tensors is None else SavedState(step=0, tensors=tensors, rows=[], progress={})
    report.log(f"going on after step {saved.step} of {loop.total}")
    kernel = saved.progress.get("kernel", "torch")
    if kernel != loop.task.kernel:
        report.log(
            f"its loss was computed by {kernel}, here it is by {loop.task.kernel}: from here on sums round otherwise"
        )
    return saved


def _keep_best(loop: Loop, saves: Saves | None, log: Callable[[str], None]) -> int:
    """Give the loop the weights that become the draft, on every rank; the first one's `saves` have them.

    Returns:
        the step that they are of.
    """
    best = None if saves is None or saves.best is None else saves.best.newest()
    step = loop.ranks.told(None if best is None else best.step)
    if step is not None:
        loop.optimizer.load(None if best is None else best.tensors)
        return int(step)
    if loop.task.spec.keep == "best" and loop.held_out is not None:
        log("the weights of the best look could not be kept: those of the last step become the draft")
    return loop.progress.step


def _write(loop: Loop, out: Out, report: Report) -> None:
    """Write the draft, its metrics, its curve, and the state from which training can be continued."""
    out.folder.mkdir(parents=True, exist_ok=True)
    save_draft(loop.task.model, out.folder)
    out.file(METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in loop.progress.rows))
    narrator = Narrator(report)
    out.file(CURVE).write_bytes(narrator.draw(loop))
    narrator.end(loop)
    write_tensors(loop.optimizer.state(), out.file(STATE))


def _counts(loop: Loop, cache: TargetCache, kept: int) -> dict[str, Any]:
    """Return what the manifest tells of the run; `kept` is the step whose weights became the draft."""
    looks = loop.progress.looks()
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
        "loss": loop.progress.last_loss(),
        "untrained": next((look for look in looks if look["step"] == 0), None),
        "kept_step": kept,
        "held_out": next((look for look in looks if look["step"] == kept), None),
        "seconds": round(loop.meter.training, 1),
        "step_cpu_seconds": loop.meter.step_cpu_seconds,
        "look_seconds": 0.0 if loop.validation is None else round(loop.validation.seconds, 1),
        "walk_seconds": 0.0 if loop.validation is None else round(loop.validation.walking, 1),
        "tokens_per_second": round(loop.meter.tokens_per_second, 1),
        "samples_per_second": round(loop.meter.samples_per_second, 3),
        "data_wait_share": round(loop.data_wait_share, 4),
        "kernel": loop.task.kernel,
        "memory_bytes": peak_memory(loop.task.device),
        "mfu": loop.meter.utilization,
    }
