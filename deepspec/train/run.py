"""The train stage: a target cache in, a draft out.

Every rank calls `run` with the same arguments; the first one saves states, writes files and speaks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import torch

from deepspec.artifacts import Artifact
from deepspec.passes.live import open_cache
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.start.begin import earlier_weights
from deepspec.steps.checkpoint import Checkpoints, Retention, SavedState, Saves, seconds_to_save
from deepspec.steps.ranks import Ranks
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from deepspec.train.checked import check_cache
from deepspec.train.loop import Loop
from deepspec.train.memory import free_memory
from deepspec.train.narrator import Narrator, silent
from deepspec.train.ready import judged, make_loop
from deepspec.train.spec import TrainSpec
from deepspec.train.trackers import Trackers
from deepspec.train.written import counts_of, write_draft
from deepspec.watch.trace import traced

ENGINES_SHARE = 0.25
"""Share of the host's free memory that states take at most which engines gave and training has not read yet."""


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
    with Ranks(placement.draft_device) as ranks:
        if placement.threads is not None:
            torch.set_num_threads(placement.threads)
        with _opened(spec, inputs["target_cache"], out, ranks, placement, report) as cache:
            if ranks.first:
                check_cache(spec, inputs["target_cache"], cache, placement, report)
            saved = _newest(spec, out, ranks, report) if ranks.first else None
            loop = make_loop(spec, cache, ranks, placement, report.log, goes_on=saved is not None)
            loop = judged(loop, inputs, cache, placement)
            kept = _lead(loop, saved, out, placement, report) if ranks.first else _follow(loop, placement)
            for line in cache.told():
                report.log(line)
            ranks.wait()
            return counts_of(loop, cache, kept)


def _opened(
    spec: TrainSpec, artifact: Artifact, out: Out, ranks: Ranks, placement: Placement, report: Report
) -> AbstractContextManager[TargetCache]:
    """Return the cache as training reads it, for as long as the block runs."""
    if spec.source != "engine":
        return nullcontext(open_cache(artifact, placement, spec.source, on_corrupt=spec.on_corrupt))
    from deepspec.gathering.live import StatesRoom, engine_cache  # loads the client of engines, which takes a second

    here = max(1, ranks.count // ranks.machines)
    free = free_memory(torch.device("cpu"))
    room = StatesRoom(
        ahead=min(placement.staging_limit, int(ENGINES_SHARE * free)) // here,
        folder=out.scratch / "states",
        kept=spec.keep_states,
        sharers=here,
        proves=ranks.rank % here == 0,
    )
    own = placement.model_copy(update={"staging_limit": placement.staging_limit // here})
    return engine_cache(artifact, spec, room, own, report)


def _lead(loop: Loop, saved: SavedState | None, out: Out, placement: Placement, report: Report) -> int:
    """Train as the rank that saves, writes and speaks; return the step whose weights became the draft."""
    narrator = Narrator(report)
    trackers = Trackers(placement.trackers, f"train-{out.address}", placement.scratch / "trackers")

    def tell(loop: Loop) -> None:
        narrator(loop)
        trackers(loop)

    with trackers, _saves(loop.task.spec, out, loop.ranks, report) as saves:
        begin = _earlier(loop, out, placement, report) if saved is None else _goes_on(loop, saved, report)
        loop.resume(begin, micro_batch=placement.micro_batch, pack=placement.pack, log=report.log)
        if begin is not None:
            begin.tensors.clear()  # the optimizer has its own: three times the weights are let go of
        if saves.best is not None:
            saves.best.drop_after(loop.progress.step)
        _keep_start(loop, saves, new=begin is None)
        report.saving(seconds_to_save(loop.optimizer.state_bytes, saves))
        narrator.begin(loop)
        trackers.begin(loop)
        with _traced(loop, out, placement, report) as loop.after_step:
            loop.run(saves, tell)
        kept = _keep_best(loop, saves, report.log)
    write_draft(loop, out, report)
    return kept


def _traced(loop: Loop, out: Out, placement: Placement, report: Report) -> AbstractContextManager[Callable[[], object]]:
    """Return the block in which steps are traced, if they are."""
    if not placement.profile:
        return nullcontext(loop.after_step)
    return traced(out, loop.task.device, loop.total - loop.progress.step, report.log)


def _follow(loop: Loop, placement: Placement) -> int:
    """Train as any other rank: whatever the first one does with all of them is done here, too."""
    loop.resume(None, micro_batch=placement.micro_batch, pack=placement.pack)
    _keep_start(loop, None)
    loop.run(None)
    kept = _keep_best(loop, None, silent)
    loop.optimizer.state()
    return kept


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


def _newest(spec: TrainSpec, out: Out, ranks: Ranks, report: Report) -> SavedState | None:
    """Return the state to go on from, or None: it decides whether the draft needs a start of its own."""
    with _saves(spec, out, ranks, report) as saves:
        return saves.last.newest()


def _earlier(loop: Loop, out: Out, placement: Placement, report: Report) -> SavedState | None:
    """Return what the spec begins with, where it names an earlier draft."""
    tensors = earlier_weights(loop.task.spec, loop.total, out, placement, report.log)
    return None if tensors is None else SavedState(step=0, tensors=tensors, rows=[], progress={})


def _goes_on(loop: Loop, saved: SavedState, report: Report) -> SavedState:
    """Return the state that training goes on from, and say so."""
    report.log(f"going on after step {saved.step} of {loop.total}")
    kernel = saved.progress.get("kernel", "torch")
    if kernel != loop.task.kernel:
        report.log(
            f"its loss was computed by {kernel}, here it is by {loop.task.kernel}: from here on sums round otherwise"
        )
    return saved


def _keep_start(loop: Loop, saves: Saves | None, *, new: bool = False) -> None:
    """Save the state before the first step where states were made for the start of a draft: a run that is killed before
    its next saved state does not ask for them again. All ranks call it; the first one's arguments count.

    Args:
        loop: before its first step.
        saves: of the first rank.
        new: whether the draft has the weights of its own start.
    """
    spec = loop.task.spec
    made = new and spec.source != "cache" and spec.start_samples(1, 1.0) > 0
    if loop.ranks.told(made):
        state = loop.state()
        if saves is not None:
            saves.last.save(state)


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
