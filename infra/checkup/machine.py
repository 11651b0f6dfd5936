"""The machine around a run: how fast its disk is, how large its shared memory, how many files may be open."""

import os
import resource
import shutil
import time
from pathlib import Path

from deepspec.placement import Placement
from deepspec.plan.rules.seen import Seen

PROBE_BYTES = 64 * 2**20
BLOCK_BYTES = 4 * 2**20
SLOW_DISK = 100e6
"""Bytes a second below which training waits for its cache: a card reads about as much."""
SHARED_MEMORY = Path("/dev/shm")
SMALL_SHARED_MEMORY = 2**30
"""Containers come with 64 MiB, which several ranks on cards use up at once."""
FEW_FILES = 4096
"""A run holds parts, sockets of engines and libraries open: the 1024 of many systems is soon reached."""


def disk(folder: Path) -> Seen:
    """Write and read a file in a folder, and tell how fast; one is not made where it would fill the disk."""
    if shutil.disk_usage(folder).free < 4 * PROBE_BYTES:
        return Seen(f"{folder} is nearly full", ("free some space: deepspec gc lists what killed runs left behind",))
    path = folder / f".probe-{os.getpid()}"
    try:
        written, read = _write_rate(path), _read_rate(path)
    finally:
        path.unlink(missing_ok=True)
    return judged_disk(folder, written, read)


def judged_disk(folder: Path, written: float, read: float) -> Seen:
    """Return what the rates of a disk, in bytes a second, mean for a run."""
    detail = f"{folder} writes {written / 1e6:,.0f} MB/s and reads {read / 1e6:,.0f} MB/s"
    if min(written, read) >= SLOW_DISK:
        return Seen(detail)
    return Seen(
        detail,
        (
            f"below {SLOW_DISK / 1e6:.0f} MB/s a training waits for its cache: set DEEPSPEC_DATA_DIR to a local SSD, "
            "or train without a cache (--set train.source=online)",
        ),
    )


def shared_memory(placement: Placement, folder: Path = SHARED_MEMORY) -> Seen:
    """Look at /dev/shm, through which ranks and data loaders talk."""
    if not folder.is_dir():
        return Seen(f"there is no {folder}")
    return judged_shared_memory(shutil.disk_usage(folder).total, placement)


def judged_shared_memory(size: int, placement: Placement) -> Seen:
    """Return what a size in bytes means for a placement."""
    detail = f"{size / 2**30:.3g} GiB"
    if size >= SMALL_SHARED_MEMORY or (placement.processes == 1 and placement.device == "cpu"):
        return Seen(detail)
    return Seen(
        detail,
        ("NCCL fails where /dev/shm is full: docker run --shm-size 16g; on Kubernetes the variable shared_memory",),
    )


def open_files() -> Seen:
    """Look at how many files a process may have open."""
    return judged_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def judged_open_files(soft: int, hard: int) -> Seen:
    """Return what the limits on open files mean for a run."""
    detail = f"{_limit(soft)}, at most {_limit(hard)}"
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return Seen(detail)
    mend = "ulimit -n 65536" if hard == resource.RLIM_INFINITY or hard >= FEW_FILES else "nofile in limits.conf"
    return Seen(detail, (f"below {FEW_FILES} large runs end with 'Too many open files': {mend}",))


def _limit(count: int) -> str:
    return "no limit" if count == resource.RLIM_INFINITY else f"{count:,}"


def _write_rate(path: Path) -> float:
    block, start = os.urandom(BLOCK_BYTES), time.perf_counter()
    with path.open("wb") as file:
        for _ in range(PROBE_BYTES // BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return PROBE_BYTES / (time.perf_counter() - start)


def _read_rate(path: Path) -> float:
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # else memory would be measured
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.read(BLOCK_BYTES):
            pass
    return PROBE_BYTES / (time.perf_counter() - start)
