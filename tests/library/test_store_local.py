"""A store in a folder: files that are taken over by a move, from wherever they lie."""

import errno
import os
import stat
from pathlib import Path

import pytest

from deepspec.errors import FullDiskError, RefusedError, StoreError
from deepspec.store import Store

MEMORY = Path("/dev/shm")


def apart(path: Path) -> bool:
    return MEMORY.is_dir() and MEMORY.stat().st_dev != path.stat().st_dev


def failing(monkeypatch: pytest.MonkeyPatch, source: Path, number: int) -> None:
    """Let a move of one file fail as the system says."""
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self == source:
            raise OSError(number, os.strerror(number), str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)


def test_a_file_of_another_file_system_is_moved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"states")
    failing(monkeypatch, source, errno.EXDEV)
    Store(tmp_path / "store").put_file(source, "states/a")
    assert [path.name for path in (tmp_path / "store" / "states").iterdir()] == ["a"]
    assert (tmp_path / "store" / "states" / "a").read_bytes() == b"states"
    assert not source.exists()


def test_a_file_in_memory_is_moved_to_a_disk(tmp_path: Path) -> None:
    if not apart(tmp_path):
        pytest.skip("/dev/shm is no file system of its own here")
    source = MEMORY / f"deepspec-test-{os.getpid()}"
    source.write_bytes(b"states")
    try:
        Store(tmp_path).put_file(source, "states/a")
        assert not source.exists()
    finally:
        source.unlink(missing_ok=True)
    assert (tmp_path / "states" / "a").read_bytes() == b"states"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, RefusedError), (errno.EIO, StoreError), (errno.ENOSPC, FullDiskError)]
)
def test_a_move_that_fails_for_another_reason_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"states")
    failing(monkeypatch, source, number)
    with pytest.raises(StoreError, match=r"cannot write .*states/a") as raised:
        Store(tmp_path / "store").put_file(source, "states/a")
    assert type(raised.value) is kind
    assert source.read_bytes() == b"states"
    assert list((tmp_path / "store" / "states").iterdir()) == []


def test_a_folder_of_somebody_else_is_refused_for_good(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RefusedError, match=r"cannot write .*; check that the root exists, is writable"):
        Store(tmp_path).write_bytes("a/b", b"x")
