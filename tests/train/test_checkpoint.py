import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from deepspec.errors import StoreError
from deepspec.steps.checkpoint import Checkpoints, Retention, SavedState, Saves, seconds_to_save
from deepspec.store import Store
from tests.given.some import some


def state(step: int) -> SavedState:
    tensors = {"master.w": torch.full((4,), float(step)), "step": torch.tensor(float(step))}
    return SavedState(step=step, tensors=tensors, rows=[{"step": step, "loss": 0.5}], progress={"samples": step * 8})


class Place:
    """Opens the same checkpoints anew, as another attempt does, and keeps what they said."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.said = root, root / "store" / "run", list[str]()

    def __call__(self, keep: int = 2, every: int | None = None) -> Checkpoints:
        kept = Retention(last=keep, every=every)
        return Checkpoints(Store(self.root / "store"), "run", self.root / "saving", kept, self.said.append)

    def newest(self) -> SavedState:
        """Return the newest state that another attempt finds."""
        return some(self().newest())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(state(step))
    checkpoints.close()


def test_a_state_of_21_gb_takes_105_s_to_save_at_200_mb_a_second(place: Place) -> None:
    """One that is being written is finished first; so is the best one, where it is kept."""
    assert seconds_to_save(21_000_000_000, Saves(last=place())) == 2 * 105
    assert seconds_to_save(21_000_000_000, Saves(last=place(), best=place())) == 3 * 105


def test_the_newest_state_comes_back_whole(place: Place) -> None:
    save(place(), 10, 20)
    found = place.newest()
    assert (found.step, found.rows, found.progress) == (20, [{"step": 20, "loss": 0.5}], {"samples": 160})
    assert torch.equal(found.tensors["master.w"], torch.full((4,), 20.0))
    assert json.loads((place.folder / "latest.json").read_text()) == {"step": 20}


def test_nothing_saved_is_none(place: Place) -> None:
    assert place().newest() is None


def test_rows_that_come_later_are_not_in_a_state(place: Place) -> None:
    live = state(10)
    checkpoints = place()
    checkpoints.save(live)
    live.rows.append({"step": 11})
    checkpoints.close()
    assert len(place.newest().rows) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "mark"])
def test_a_damaged_state_is_passed_over_for_the_one_before_and_said(place: Place, damage: str) -> None:
    save(place(), 10, 20)
    (data,) = place.folder.glob("*/step-00000020.safetensors")
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-7])
    elif damage == "flip":
        data.write_bytes(data.read_bytes()[:-1] + b"\1")
    elif damage == "gone":
        data.unlink()
    else:
        mark = place.folder / "step-00000020.json"
        mark.write_text(mark.read_text()[:40])
    assert place.newest().step == 10
    assert len(place.said) == 1
    assert "step 20" in place.said[0]
    assert "the one before" in place.said[0]


def test_only_the_last_ones_are_kept(place: Place) -> None:
    save(place(keep=2), 10, 20, 30, 40)
    names = {path.name for path in place.folder.rglob("*") if path.is_file()}
    assert names == {
        "latest.json",
        *(f"step-000000{step}.{kind}" for step in (30, 40) for kind in ("json", "jsonl", "safetensors")),
    }


def test_every_so_many_steps_a_state_is_kept_for_good(place: Place) -> None:
    save(place(keep=1, every=20), 0, 10, 20, 30, 40, 50)  # that of step 0 is one to go on from, no milestone
    assert {path.stem for path in place.folder.glob("step-*")} == {"step-00000020", "step-00000040", "step-00000050"}
    assert place.newest().step == 50


def test_data_without_a_mark_is_no_state_and_goes_with_the_next_save(place: Place) -> None:
    save(place(), 10)
    orphan = place.folder / "attempt-dead" / "step-00000020.safetensors"
    orphan.parent.mkdir()
    orphan.write_bytes(b"half")
    checkpoints = place()
    assert some(checkpoints.newest()).step == 10
    save(checkpoints, 30)
    assert not orphan.exists()


def test_a_save_that_fails_is_said_and_training_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = place()
    checkpoints.save(state(10))
    checkpoints.finish()

    def full(*_: object) -> NoReturn:
        raise StoreError("cannot write: no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_file", full)
        checkpoints.save(state(20))
        checkpoints.finish()
    assert checkpoints.failed == 1
    assert "no space left" in place.said[0]
    save(checkpoints, 30)
    assert place.newest().step == 30


def test_a_kill_between_data_and_mark_leaves_the_state_before(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = place()
    checkpoints.save(state(10))
    checkpoints.finish()
    monkeypatch.setattr(Store, "write_bytes", lambda *_: (_ for _ in ()).throw(StoreError("killed")))
    save(checkpoints, 20)
    assert place.newest().step == 10
