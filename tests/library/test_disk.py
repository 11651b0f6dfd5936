"""A full disk is named wherever it is met, what the attempt took for nothing is given back, and nothing else is."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from deepspec.disk import full_disk_named, is_full, writing
from deepspec.errors import FullDiskError, StoreError
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.stages import Stage, Work, materialize
from deepspec.store import Store
from tests.given.heard import Heard

NO_ROOM = OSError(errno.ENOSPC, "No space left on device")
FROM_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
ADVICE = r"free some space there; what is published or committed stays, and the same command goes on"


@pytest.mark.parametrize(
    ("error", "full"),
    [(NO_ROOM, True), (FROM_SAFETENSORS, True), (PermissionError(errno.EACCES, "Permission denied"), False)],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, error: Exception, full: bool) -> None:
    wanted = rf"cannot write .*weights: .*(No space|Permission).*; {ADVICE}"
    with pytest.raises(StoreError, match=wanted) as caught, writing(tmp_path / "weights"):
        raise error
    assert is_full(caught.value) is full
    assert isinstance(caught.value, FullDiskError) is full


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(SafetensorError("I/O error: Disk quota exceeded (os error 122)"))
    assert not is_full(OSError(errno.EIO, "Input/output error"))
    assert not is_full(SafetensorError("header too large"))
    assert not is_full(ValueError("28"))
    with pytest.raises(OSError, match="Input/output"), full_disk_named():
        raise OSError(errno.EIO, "Input/output error")


def test_the_folders_are_named_with_the_room_that_is_left(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=rf"cannot write to {tmp_path} \([\d,.]+ MB free\), {tmp_path}/not/yet \("),
        full_disk_named(tmp_path, tmp_path / "not" / "yet", tmp_path),
    ):
        raise NO_ROOM


def stage_that(monkeypatch: pytest.MonkeyPatch, write: Callable[[Out], object]) -> None:
    """Let every stage do this and nothing else."""
    monkeypatch.setattr(Stage, "run", lambda _: lambda spec, inputs, out, placement, report: write(out))


def run(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    stage = Stage(name="prepare", kind="prompts", spec=Spec)
    placement = Placement(scratch=tmp_path / "scratch")
    materialize(Work(stage=stage, spec=Spec(), inputs={}, store=store, placement=placement, report=Heard()))
    return store


def test_an_attempt_that_meets_a_full_disk_gives_back_its_files_but_not_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(out: Out) -> None:
        part = out.scratch / "part"
        part.write_text("committed")
        out.commit_part(0, 0, {"part": part}, {})
        out.file("half").write_text("x" * 1000)
        raise NO_ROOM

    stage_that(monkeypatch, write)
    with pytest.raises(StoreError, match=r"cannot write to .*No space left on device"):
        run(tmp_path)
    files = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert "part" in files
    assert "half" not in files


def test_another_error_is_passed_on_as_it_is_and_its_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(out: Out) -> None:
        out.file("half").write_text("x")
        raise IsADirectoryError("something else")

    stage_that(monkeypatch, write)
    with pytest.raises(IsADirectoryError):
        run(tmp_path)
    assert [path.name for path in (tmp_path / "store").rglob("half")] == ["half"]


def test_a_write_that_fails_leaves_nothing_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")

    def half(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise NO_ROOM

    monkeypatch.setattr("deepspec.store.local._write_durably", half)
    for write in (store.write_bytes, store.create):
        with pytest.raises(StoreError, match="No space left"):
            write("kind/address/mark", b"data")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


FULL = """
import sys
from pathlib import Path
import torch
from deepspec.errors import StoreError
from deepspec.checkpoint.draft import save_draft
from deepspec.steps.checkpoint import write_tensors
from tests.given.drafts.learning import tiny

small = Path(sys.argv[1])
for write in (lambda: save_draft(tiny(), small), lambda: write_tensors({"a": torch.zeros(100_000)}, small / "b")):
    try:
        write()
    except StoreError as error:
        print("named:", error)
"""


def test_a_draft_that_finds_no_room_is_a_named_error(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here: a small disk cannot be mounted")
    script = 'mount -t tmpfs -o size=16k tmpfs "$0" && exec "$@"'
    command = ["unshare", "-Urm", "sh", "-c", script, str(tmp_path), sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("named: cannot write") == 2
    assert done.stdout.count("No space left on device") == 2
    assert "model.safetensors" in done.stdout
