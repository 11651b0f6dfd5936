"""The training loop: one optimizer step after another, with looks at the held-out slice and saved states between.

What happens at a step is a function of the spec, the data and the state after the step before. So a run that was
interrupted and resumed takes the same steps as one that was not.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

from deepspec.errors import CancelledError
from deepspec.optimizers.muon import OPTIMIZERS
from deepspec.optimizers.schedule import rate_of
from deepspec.records.batch import on_device
from deepspec.records.stream import Cut, Samples, Share, Stream
from deepspec.steps.checkpoint import Checkpoints, SavedState, Saves
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import Pace, Reader, Step
from deepspec.steps.step_guard import StepGuard
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve, Taken, Unread
from deepspec.train.accepted import AnswersKnown
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task, add, total_denominators
from deepspec.train.validation import HeldOut, Looking, Validation
from deepspec.watch.meter import Meter, device_peak, step_flops
from deepspec.watch.progress import Look, RunProgress

_Result = TypeVar("_Result")


def total_steps(spec: TrainSpec, samples: int) -> int:
    """Return the optimizer steps of a run over so many training samples; at least one."""
    return spec.steps or max(1, math.ceil(spec.epochs * samples / spec.global_batch))


class Loop:
    """Trains a task from where its progress stands to the end.

    Args:
        task: what is trained.
        samples: the training split.
        ranks: who shares the work.
        cut: how steps are cut into forward passes.
        pace: how far and how wide to read ahead.
    """

    def __init__(self, task: Task, samples: Samples, ranks: Ranks, cut: Cut, pace: Pace = Pace()) -> None:  # noqa: B008 - frozen
        """Take over the model's parameters; nothing is read yet."""
        spec = task.spec
        self.task = task
        self.total = total_steps(spec, len(samples))
        self.held_out: Samples | None = None
        """The slice that is looked at."""
        self.answered = AnswersKnown()
        """What is known of its answers."""
        self.greedy: HeldOut | None = None
        """Greedy answers beside it, where its own are sampled; walked over at each look."""
        self.progress = RunProgress(watch=spec.watch)
        self.meter = Meter(device_peak(task.device))
        self.guard = StepGuard(spec.skip_limit)
        self.optimizer = OPTIMIZERS[spec.optimizer](task.model, spec, task.dtype, ranks)
        self.cut = cut
        """How steps are cut into forward passes."""
        self.ranks = ranks
        self.fetch_every = 1
        """Steps whose numbers are fetched from the device together; it changes no result."""
        self.after_step: Callable[[], object] = _nothing
        """Called after each step, on the host: a card may still be busy with it."""
        self.note: Callable[[], str] = str
        """Returns in a few words what is to be known of where samples come from."""
        self._stream = Stream(samples, spec.global_batch, spec.seed)
        self.reader = Reader(samples=samples, share=self._share, supervise=task.supervise, pace=pace)
        self._look_every = spec.look_every(self.total)
        self._unread = Unread()

    @cached_property
    def validation(self) -> Validation | None:
        """Return how the held-out slice is looked at: cut as the steps are, once it is known how they are."""
        if self.held_out is None:
            return None
        looking = Looking(ranks=self.ranks, micro_batch=self.cut.micro_batch, pace=self.reader.pace)
        own = HeldOut(samples=self.held_out, answered=self.answered, most=self.task.spec.validation_samples)
        return Validation(self.task, own, looking, self.greedy)

    @property
    def data_wait_share(self) -> float:
        """Return the share of the time in which the loop waited for records."""
        waited = self.reader.waited
        return waited / (waited + self.meter.training) if waited else 0.0

    @property
    def finished(self) -> bool:
        """Return whether no step is left, or what is watched of held-out samples is not better for too long."""
        return self.progress.step >= self.total or self._out_of_patience()

    def run(self, saves: Saves | None, on_rows: Callable[["Loop"], object] | None = None) -> None:
        """Train to the end, or until asked to stop.

        Args:
            saves: where states are saved; None on ranks that do not save.
            on_rows: called when there are new metric rows, before a state that holds them is saved.

        Raises:
            CancelledError: asked to stop by SIGTERM; the state is saved.
            TrainingError: it cannot go on.
        """
        sieve = Sieve(self.guard.limit, self.guard.in_a_row, self.task.device)
        with StopSignal() as stop, closing(self.reader.steps(self.progress.step, self.total)) as steps:
            looked = self._look_if_due(saves, stop)
            while not self.finished:
                taken = self._timed(lambda: self._step(next(steps), sieve, stop))
                if taken:
                    self.after_step()
                if not taken or self._is_fetch_due():
                    self._timed(self._fetch)
                if not taken:
                    self._cancel(saves)
                looked = self._look_if_due(saves, stop)
                if on_rows is not None and not self._unread:
                    on_rows(self)
                if self._is_save_due():
                    self._save(None if saves is None else saves.last)
            if not looked:
                self._cancel(saves)

    def state(self) -> SavedState:
        """Return what a saved state holds; all ranks ask at the same time, the first one's has the tensors."""
        progress = self.progress
        told = {
            "samples": progress.samples,
            "tokens": progress.tokens,
            "guard": asdict(self.guard),
            "cut": asdict(self.cut),
            "kernel": self.task.kernel,
        }
        return SavedState(step=progress.step, tensors=self.optimizer.state(), rows=progress.rows, progress=told)

    def resume(
        self,
        saved: SavedState | None,
        *,
        micro_batch: int | None = None,
        pack: bool = False,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Go on from a saved state, the same on every rank; only the first rank's is looked at.

        Steps are cut as the run began, so that sums round alike, unless they are asked to be cut otherwise.

        Args:
            saved: the first rank's newest state, or weights to begin with; None, here or there: the model's own.
            micro_batch: rows of a pass that are asked for; None: as the run began.
            pack: whether packed rows are asked for; else as the run began.
            log: told where steps are cut otherwise than before.
        """
        told = self.ranks.told(None if saved is None else (saved.step, saved.rows, saved.progress, list(saved.tensors)))
        if told is None:
            return
        step, rows, progress, names = told
        self.optimizer.load(None if saved is None else saved.tensors, moments="step" in names)
        known = {"cut": {}, "guard": asdict(self.guard), **progress}
        if known["cut"].get("ranks") == self.ranks.count:
            self.cut = _cut_anew(Cut(**known["cut"]), micro_batch, pack, log)
        self.guard = StepGuard(**{**known["guard"], "limit": self.guard.limit})
        counted = known.get("samples", 0), known.get("tokens", 0)
        self.progress = RunProgress(step, *counted, rows, watch=self.task.spec.watch)

    def _share(self, step: int) -> Share:
        return self._stream.share(step, self.ranks.rank, self.cut)

    def _timed(self, call: Callable[[], _Result]) -> _Result:
        """Call, and count the time as training, but for that in which it waited for records."""
        begin, waited, spent = time.perf_counter(), self.reader.waited, time.process_time()
        result = call()
        self.meter.processor += time.process_time() - spent
        self.meter.training += time.perf_counter() - begin - (self.reader.waited - waited)
        return result

    def _step(self, step: Step, sieve: Sieve, stop: StopSignal) -> bool:
        """Take one step; return False, with nothing changed, where some rank was asked to stop meanwhile.

        On a card the host waits for nothing in here but records.
        """
        task, device = self.task, self.task.device
        denominators = self.ranks.sum_named(on_device(total_denominators(step.supervised), device))
        totals: dict[str, Tensor] = {}
        measure, held = task.measures(self.progress.step), False
        for micro in task.moved(step.micro_batches()):
            if stop.asked:
                break
            result = task.loss(micro, denominators, measure=measure)
            result.loss.backward()
            add(totals, {"loss": result.loss, **result.sums})
            held |= result.held
        if self.ranks.any(stop.asked):
            self.optimizer.forget()
            return False
        norm = self.optimizer.sum_gradients()
        sums = self.ranks.sum_named(totals)
        rate = rate_of(self.progress.step, self.total, task.spec)
        self.optimizer.step(rate, norm, sieve.keeps_out(sums["loss"], norm))
        self._count(step, rate, {"gradient_norm": norm, **sums}, held=held)
        return True

    def _count(self, step: Step, rate: float, values: Mapping[str, Tensor], *, held: bool) -> None:
        """Count a step that was sent to the device, and leave what it gives there."""
        samples = self.task.spec.global_batch
        taken = Taken(step=self.progress.step, learning_rate=rate, sample_ids=step.sample_ids)
        self._unread.add(taken, values)
        self.progress.step += 1
        self.progress.samples += samples
        self.progress.tokens += step.tokens
        self.meter.steps += 1
        self.meter.tokens += step.tokens
        self.meter.samples += samples
        if self.meter.peak:
            self.meter.flops += step_flops(self.task.model, step.work, held=held)

    def _is_fetch_due(self) -> bool:
        return self.progress.step % self.fetch_every == 0 or self._is_look_due() or self._is_save_due()

    def _fetch(self) -> None:
        """Write the rows of the steps whose numbers lie on the device.

        Raises:
            TrainingError: too many of them in a row were not finite.
        """
        for taken, values in self._unread.fetch():
            loss, norm = float(values["loss"]), float(values.pop("gradient_norm"))
            row: dict[str, Any] = {"split": "train", "step": taken.step + 1}
            if self.guard.allows(loss, norm, taken.step, taken.sample_ids):
                row |= {"loss": loss, "learning_rate": taken.learning_rate, "gradient_norm": norm}
                row |= {"spike": True} if self.guard.is_spike(norm) else {}
                row |= self.task.algorithm.metrics(values)
            else:
                row |= {"skipped": True}
            self.progress.add(row)

    def _is_look_due(self) -> bool:
        step = self.progress.step
        if step == 0 and not self.task.spec.untrained_look:
            return False
        return step % self._look_every == 0 or step == self.total

    def _look_if_due(self, saves: Saves | None, stop: StopSignal) -> bool:
        """Look at the held-out slice, at the first step, at the last and at the pace between, once each.

        Weights that are the best so far are saved where the spec keeps those, before a state to go on from says that
        the look is done.

        Returns:
            False where a rank was asked to stop meanwhile: the look is still to be taken.
        """
        step, looks = self.progress.step, self.progress.looks()
        if self.validation is None or not self._is_look_due() or (looks and looks[-1]["step"] == step):
            return True
        metrics = self.validation.look(stop)
        if metrics is None:
            return False
        look = {"split": "validation", "step": step, **metrics}
        self.progress.add(look)
        if self.task.spec.keep == "best" and self.progress.best_look() is look:
            self._save_best(look, saves)
        return True

    def _save_best(self, look: Look, saves: Saves | None) -> None:
        """Save the weights of the best look so far, or go on with those of the one before where they cannot be."""
        best = None if saves is None else saves.best
        self._save(best)
        if not self.ranks.told(best is None or best.finish()):
            self.progress.not_kept(look)

    def _is_save_due(self) -> bool:
        """Return whether it is time to save the state to go on from."""
        return self.progress.step % self.task.spec.checkpoint_every == 0 or self.finished

    def _save(self, checkpoints: Checkpoints | None) -> None:
        state = self.state()
        if checkpoints is not None:
            checkpoints.save(state)

    def _out_of_patience(self) -> bool:
        patience = self.task.spec.patience
        return patience is not None and self.progress.looks_without_progress() >= patience

    def _cancel(self, saves: Saves | None) -> None:
        self._save(None if saves is None else saves.last)
        if saves is not None:
            saves.last.finish()
        self.ranks.wait()
        raise CancelledError(f"training was asked to stop; step {self.progress.step} is saved, run again to go on")


def _nothing() -> None:
    """Do nothing: nobody wants to hear of each step."""


def _cut_anew(kept: Cut, micro_batch: int | None, pack: bool, log: Callable[[str], None]) -> Cut:
    """Return how a run that goes on cuts its steps: as it began, but for what is asked for now."""
    cut = replace(kept, micro_batch=micro_batch or kept.micro_batch, pack=pack or kept.pack)
    if cut != kept:
        log(
            f"steps are cut into passes of {_told(cut)} from here, as asked for; the run began with {_told(kept)}. "
            "Sums round otherwise: the draft may differ in its last bits from that of a run that was not interrupted"
        )
    return cut


def _told(cut: Cut) -> str:
    return f"{cut.micro_batch} {'packed ' if cut.pack else ''}row{'' if cut.micro_batch == 1 else 's'}"
