"""What goes wrong beside the processes: a full disk, a store that is away, a state cut by hand."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepspec.errors import CancelledError
from deepspec.steps.checkpoint import Checkpoints, Retention, Saves
from deepspec.store import Store
from deepspec.train import narrator
from deepspec.train.loop import Loop
from tests.given.drafts.toy import toy_loop, weights
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site
from tests.train.test_loop import SPEC


@contextmanager
def full_disk(room: int = 500) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_disk_that_is_full_during_a_save_costs_that_state_and_nothing_else(tmp_path: Path, seed: int) -> None:
    spec, said = SPEC.but(seed=seed), list[str]()
    whole, loop = toy_loop(spec), toy_loop(spec)
    whole.run(None)
    states = Checkpoints(Store(tmp_path), "run", tmp_path / "saving", Retention(last=3), said.append)

    def during_one_save(loop: Loop) -> None:
        if loop.progress.step == 7:
            states.finish()  # the save of step 5 has its room
            with full_disk():
                states.save(loop.state())
                states.finish()

    loop.run(Saves(last=states), during_one_save)
    states.close()
    assert states.failed == 1
    assert "checkpoint not saved: cannot write" in said[0]
    assert "File too large" in said[0]
    assert {path.stem for path in (tmp_path / "run").glob("step-*")} == {f"step-{n:08d}" for n in (5, 10, 12)}
    assert all(bool((weights(whole)[name] == value).all()) for name, value in weights(loop).items())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_store_that_is_away_during_every_save_does_not_end_training(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = list[str]()
    loop = toy_loop(SPEC.but(seed=seed))
    states = Checkpoints(Store("s3://away/x"), "run", tmp_path / "saving", Retention(last=2), said.append)
    loop.run(Saves(last=states))
    states.close()
    assert loop.progress.step == 12
    assert states.failed == 3
    assert all("checkpoint not saved" in line for line in said)


class Cutting(Heard):
    """Cuts the newest saved state short and sends SIGTERM when it hears of a step."""

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_state_cut_by_hand_is_passed_over_and_the_run_publishes_the_same_bytes(
    site: Site, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrator, "PROGRESS_SECONDS", 0.0)
    spec = SMALL.but(seed=10 + seed)
    undisturbed, _ = site.train(spec, f"uncut-{seed}")
    with pytest.raises(CancelledError):
        site.train(spec, f"cut-{seed}", Cutting())
    scratch = site.out(f"cut-{seed}").scratch
    (newest,) = scratch.rglob("step-00000007.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    again = Heard()
    ref, _ = site.train(spec, f"cut-{seed}", again)
    assert "checkpoint of step 7 cannot be used" in again.lines[0]
    assert "the one before" in again.lines[0]
    assert again.lines[1] == "going on after step 6 of 8"
    assert site.checksums(ref) == site.checksums(undisturbed)


def test_a_run_stopped_in_its_last_look_takes_the_look_again_and_no_step_to_hold_it_against(tmp_path: Path) -> None:
    loop, heard = toy_loop(SPEC), Heard()
    states = Checkpoints(Store(tmp_path), "run", tmp_path / "saving", Retention(last=3), heard.log)
    loop.after_step = lambda: os.kill(os.getpid(), signal.SIGTERM) if loop.progress.step == 12 else None
    with pytest.raises(CancelledError):
        loop.run(Saves(last=states))
    states.close()
    again = toy_loop(SPEC)
    again.resume(states.newest())
    assert again.finished
    again.run(None)
    narrator.Narrator(heard).end(again)
    assert heard.lines[-1].startswith("looks at held-out samples took")
    assert "as long as" not in heard.lines[-1]
    assert len(heard.tables[narrator.LOOKS]) == len(again.progress.looks())
