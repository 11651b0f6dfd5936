import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.errors import CancelledError, StoreError, TrainingError
from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.steps.checkpoint import Checkpoints, Retention, Saves
from deepspec.steps.stop import StopSignal
from deepspec.store import Store
from deepspec.train.loop import Loop, total_steps
from deepspec.train.run import _keep_best
from deepspec.train.spec import TrainSpec
from deepspec.train.validation import Validation
from tests.given.drafts.toy import ToySamples, toy_loop, weights
from tests.given.some import some

SPEC = TrainSpec(steps=12, global_batch=6, learning_rate=0.02, precision="fp32", validate_every=4, checkpoint_every=5)


def trained(spec: TrainSpec = SPEC, **options: Any) -> Loop:
    loop = toy_loop(spec, **options)
    loop.run(None)
    return loop


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(Store(folder), "run", folder / "saving", Retention(last=2), print)


def master(loop: Loop) -> Tensor:
    """Return the weights in fp32, flat."""
    assert isinstance(loop.optimizer, MasterAdamW)
    return loop.optimizer.master


def stop_at(step: int) -> Callable[[Loop], None]:
    """Ask this very process to end after a step."""

    def stop(loop: Loop) -> None:
        if loop.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def losses(loop: Loop) -> list[float]:
    return [row["loss"] for row in loop.progress.rows if row["split"] == "train"]


def test_steps_come_from_the_spec_or_from_epochs_rounded_up() -> None:
    assert total_steps(TrainSpec(steps=7), samples=1000) == 7
    assert total_steps(TrainSpec(epochs=2, global_batch=8), samples=13) == 4  # 26 samples in batches of 8
    assert total_steps(TrainSpec(epochs=0.1, global_batch=512), samples=100) == 1


def test_training_lowers_both_losses() -> None:
    loop = trained(SPEC.but(steps=30, learning_rate=0.1))
    looks = loop.progress.looks()
    assert losses(loop)[-1] < 0.5 * losses(loop)[0]
    assert looks[-1]["loss"] < 0.5 * looks[0]["loss"]


def test_the_rows_tell_each_step_and_each_look_once() -> None:
    rows = trained().progress.rows
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["split"] == "validation"] == [0, 4, 8, 12]
    assert set(rows[1]) == {"split", "step", "loss", "learning_rate", "gradient_norm", "error", "tau"}


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_the_cut_into_micro_batches_does_not_change_the_result(micro_batch: int) -> None:
    whole, cut = trained(micro_batch=6), trained(micro_batch=micro_batch)
    torch.testing.assert_close(losses(cut), losses(whole), rtol=1e-5, atol=0)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-4, atol=1e-6)


def test_packed_rows_do_not_change_the_result() -> None:
    whole, packed = trained(micro_batch=6), trained(micro_batch=2, pack=True)
    torch.testing.assert_close(losses(packed), losses(whole), rtol=1e-5, atol=0)
    torch.testing.assert_close(weights(packed), weights(whole), rtol=1e-4, atol=1e-6)


def test_a_resumed_run_packs_as_it_did_before(tmp_path: Path) -> None:
    """Whatever it is told now: so it goes on to the bit."""
    whole = trained(pack=True)
    first, states = toy_loop(SPEC, pack=True), checkpoints(tmp_path)
    with pytest.raises(CancelledError):
        first.run(Saves(last=states), stop_at(7))
    second = toy_loop(SPEC, micro_batch=5)
    second.resume(checkpoints(tmp_path).newest())
    assert second.cut == first.cut
    second.run(None)
    assert torch.equal(master(second), master(whole))
    assert second.progress.rows == whole.progress.rows


def test_a_micro_batch_that_is_asked_for_wins_and_the_log_says_what_that_means(tmp_path: Path) -> None:
    first, states = toy_loop(SPEC, micro_batch=3), checkpoints(tmp_path)
    with pytest.raises(CancelledError):
        first.run(Saves(last=states), stop_at(7))
    saved = checkpoints(tmp_path).newest()
    asked_for: list[dict[str, Any]] = [{}, {"micro_batch": 3}]
    told: list[str] = []
    for asked in asked_for:
        loop = toy_loop(SPEC, micro_batch=5)
        loop.resume(saved, **asked, log=told.append)
        assert (loop.cut.micro_batch, told) == (3, [])
    loop = toy_loop(SPEC, micro_batch=1)
    loop.resume(saved, micro_batch=1, pack=True, log=told.append)
    assert (loop.cut.micro_batch, loop.cut.pack) == (1, True)
    assert "passes of 1 packed row from here, as asked for; the run began with 3 rows" in told[0]
    assert "may differ in its last bits" in told[0]
    loop.run(None)
    torch.testing.assert_close(weights(loop), weights(trained(micro_batch=3)), rtol=1e-4, atol=1e-6)


def test_a_look_that_a_stop_interrupts_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one, too: else the published numbers would be those of other weights."""
    whole = trained()
    real = Validation.look

    def interrupted(self: Validation, stop: StopSignal) -> dict[str, Any] | None:
        looks.append(stop)
        if len(looks) in (3, 5):  # at step 8, and at the last
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, stop)

    looks: list[object] = []
    monkeypatch.setattr(Validation, "look", interrupted)
    for stopped_at in (8, 12):
        loop, states = toy_loop(SPEC), checkpoints(tmp_path)
        loop.resume(states.newest())
        with pytest.raises(CancelledError, match=f"step {stopped_at} is saved"):
            loop.run(Saves(last=states))
        states.close()
    loop = toy_loop(SPEC)
    loop.resume(checkpoints(tmp_path).newest())
    loop.run(None)
    assert loop.progress.rows == whole.progress.rows


def best_and_last(folder: Path) -> Saves:
    best = Checkpoints(Store(folder), "best", folder / "saving-best", Retention(last=1), print)
    return Saves(last=checkpoints(folder), best=best)


def test_the_best_weights_are_those_of_the_best_look_that_could_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from step 6 on: the weights of step 4 become the draft, with the numbers of step 4."""
    spec = SPEC.but(keep="best", validate_every=2)
    loop, saves, at = toy_loop(spec), best_and_last(tmp_path), {}
    real = Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", lambda self, state: real(self, state) if state.step < 6 else full())
    loop.run(saves, lambda loop: at.update({loop.progress.step: weights(loop)}))
    assert [row["loss"] for row in loop.progress.looks()] == sorted(
        (row["loss"] for row in loop.progress.looks()), reverse=True
    )
    assert [row["step"] for row in loop.progress.looks() if row.get("saved") is False] == [6, 8, 10, 12]
    assert _keep_best(loop, saves, print) == 4 == some(loop.progress.best_look())["step"]
    assert all(torch.equal(value, at[4][name]) for name, value in weights(loop).items())


def full() -> None:
    raise StoreError("cannot write: no space left on device")


def test_where_no_best_weights_could_be_saved_the_last_ones_are_taken_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, saves, told = toy_loop(SPEC.but(keep="best")), best_and_last(tmp_path), list[str]()
    monkeypatch.setattr(Checkpoints, "_write", lambda self, state: full())
    loop.run(saves)
    before = weights(loop)
    assert _keep_best(loop, saves, told.append) == 12
    assert told == ["the weights of the best look could not be kept: those of the last step become the draft"]
    assert all(torch.equal(value, before[name]) for name, value in weights(loop).items())


def test_best_weights_of_steps_that_a_resumed_run_takes_anew_are_forgotten(tmp_path: Path) -> None:
    """It may take them otherwise, with another micro-batch say, and find its best weights elsewhere."""
    saves = best_and_last(tmp_path)
    loop = toy_loop(SPEC)
    for step in (4, 8):
        some(saves.best).save(replace(loop.state(), step=step))
        some(saves.best).finish()
    some(saves.best).drop_after(8)
    assert some(some(saves.best).newest()).step == 8
    some(saves.best).drop_after(5)
    assert some(saves.best).newest() is None


def test_the_loss_of_a_step_is_the_mean_over_the_supervised_tokens_of_its_global_batch() -> None:
    """Not the mean of the means of its micro-batches, which weighs short samples more."""
    rows = trained(micro_batch=1).progress.rows
    assert all(row["loss"] == pytest.approx(row["error"], rel=1e-6) for row in rows)


@pytest.mark.parametrize(("precision", "stop_after"), [("fp32", 1), ("fp32", 5), ("fp32", 11), ("bf16", 8)])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, precision: str, stop_after: int
) -> None:
    spec = SPEC.but(precision=precision)
    whole = trained(spec)
    first, states = toy_loop(spec), checkpoints(tmp_path)
    with pytest.raises(CancelledError, match=f"step {stop_after} is saved"):
        first.run(Saves(last=states), stop_at(stop_after))
    second, states = toy_loop(spec), checkpoints(tmp_path)
    second.resume(states.newest())
    assert second.progress.step == stop_after
    second.run(Saves(last=states))
    assert json.dumps(second.progress.rows) == json.dumps(whole.progress.rows)
    for name, value in weights(whole).items():
        assert torch.equal(second.optimizer.state()[name], value), name


def test_a_crash_redoes_the_steps_since_the_last_saved_state(tmp_path: Path) -> None:
    whole = trained()
    first, states = toy_loop(SPEC), checkpoints(tmp_path)

    def crash(loop: Loop) -> None:
        if loop.progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(Saves(last=states), crash)
    states.close()
    second = toy_loop(SPEC)
    second.resume(checkpoints(tmp_path).newest())
    assert second.progress.step == 5
    second.run(None)
    assert torch.equal(master(second), master(whole))
    assert second.progress.rows == whole.progress.rows


def test_the_pace_of_saving_changes_no_address() -> None:
    assert SPEC.but(checkpoint_every=1, keep_checkpoints=7).identity() == SPEC.identity()
    assert SPEC.but(learning_rate=0.1).identity() != SPEC.identity()


def test_the_signal_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    trained()
    assert signal.getsignal(signal.SIGTERM) is before


def poisoned(numbers: Iterable[int]) -> ToySamples:
    """Return samples some of which hold states that are not numbers."""
    samples = ToySamples()
    for number in numbers:
        samples.records[number].hidden[0, 0] = torch.nan
    return samples


def test_a_step_that_is_not_finite_is_skipped_and_the_weights_stay() -> None:
    loop = trained(SPEC.but(steps=2, global_batch=12, skip_limit=2), samples=poisoned([3]))
    untrained = toy_loop(SPEC)
    assert [row.get("skipped") for row in loop.progress.rows if row["split"] == "train"] == [True, True]
    assert torch.equal(master(loop), master(untrained))
    assert loop.guard.skipped == 2
    json.dumps(loop.progress.rows, allow_nan=False)


def test_one_bad_sample_costs_only_its_own_steps() -> None:
    loop = trained(SPEC.but(global_batch=3), samples=poisoned([3]))  # 12 steps of 3: each sample comes three times
    assert loop.guard.skipped == 3
    assert torch.isfinite(master(loop)).all()


def test_a_run_that_only_skips_is_stopped_with_a_diagnosis() -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row .* sample-"):
        trained(SPEC.but(global_batch=12, skip_limit=2), samples=poisoned([3]))


def test_training_stops_early_where_the_held_out_loss_no_longer_falls() -> None:
    loop = trained(SPEC.but(steps=40, validate_every=1, patience=3, learning_rate=1e-12))
    assert loop.progress.step < 40
    stale = [row["loss"] for row in loop.progress.looks()]
    assert min(stale[:-3]) <= min(stale[-3:])


def test_resuming_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    first, states = toy_loop(SPEC), checkpoints(tmp_path)
    first.run(Saves(last=states))
    states.close()
    second = toy_loop(SPEC)
    second.resume(checkpoints(tmp_path).newest())
    second.run(None, lambda loop: pytest.fail("it took a step"))
    assert torch.equal(master(second), master(first))


def test_no_held_out_samples_no_looks() -> None:
    assert trained(SPEC.but(validation_samples=0)).progress.looks() == []
