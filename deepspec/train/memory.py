"""How many rows fit into one forward pass: measured on the longest sample before the first step.

A run that dies of memory dies at its longest sample, hours after its start. So that sample goes through the model
first, alone and twice, and what the second one added says how many fit. Where rows are packed, the fullest row that
packing can make takes its place: as long, but with more anchors.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.checkpoint import checkpoint

from deepspec.errors import TrainingError
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Record, collate_rows, on_device
from deepspec.records.stream import Cut, Samples, read_record
from deepspec.steps.reader import MicroBatch, Supervised
from deepspec.train.task import Task, total_denominators

SHARE = 0.8
"""Of the free memory that a forward and backward pass may take."""
MOST_ON_CPU = 8
"""Rows beyond which a pass on a CPU gets no faster."""
MOST = 256
ASSUMED_FREE = 4 << 30
"""Free memory of a host that does not tell."""
STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")


class Stepping(Protocol):
    """What takes the gradients of passes: an optimizer."""

    @property
    def unmade_bytes(self) -> int:
        """Return the bytes that adding up gradients of several passes would take, and that nothing has taken yet."""

    def forget(self) -> None:
        """Drop the gradients collected so far."""


def fitting_micro_batch(task: Task, samples: Samples, cut: Cut, log: Callable[[str], None], optimizer: Stepping) -> int:
    """Return how many rows a forward pass takes, a power of two or all.

    Where not even one fits, activations are computed again in the backward pass instead of kept.

    Args:
        task: what is trained.
        samples: the training split.
        cut: how many ranks share a step, and whether rows are packed.
        log: told what was found.
        optimizer: takes the gradients of the trial, and forgets them.

    Raises:
        TrainingError: not even one row fits.
    """
    cpu = task.device.type == "cpu"
    most = min(-(-task.spec.global_batch // cut.ranks), MOST_ON_CPU if cpu else MOST)
    if cpu and (most == 1 or not REFS.exists()):  # only Linux tells what a pass takes
        return most
    number = max(samples.order(0), key=samples.length)
    record, free = read_record(samples, number), free_memory(task.device) - optimizer.unmade_bytes * (most > 1)
    room = SHARE * free
    row = fullest_row(record, task.spec.objective.num_anchors) if cut.pack else [record]
    one = _taken(task, [row], optimizer)
    if one is None or one > room:
        recompute_activations(task.model)
        log(
            f"the longest row, {len(record.input_ids)} tokens, takes {_mb(one)} of {_mb(int(room))}: "
            "activations are computed again in the backward pass"
        )
        one = _taken(task, [row], optimizer)
    if one is None or one > free:
        raise _too_small(len(record.input_ids), one, free)
    if most == 1:  # a second row would be compiled for nothing
        log(f"micro-batch 1, as a rank has one row of a step: the longest takes {_mb(one)}")
        return 1
    two = _taken(task, [row, row], optimizer)
    fits = 1 if two is None else 1 + max(0, int((room - one) // max(two - one, 1)))
    size = min(most, 1 << (fits.bit_length() - 1))
    more = None if two is None else max(0, two - one)  # the first pass also made what every later one finds
    log(f"micro-batch {size}: the longest row takes {_mb(one)}, one more {_mb(more)}")
    return size


def _too_small(tokens: int, taken: int | None, free: int) -> TrainingError:
    missing = "more than there is" if taken is None else f"{_mb(taken)}, {_mb(taken - free)} more than there is"
    return TrainingError(
        f"one row of {tokens} tokens takes {missing} ({_mb(free)} free), even with activations computed again; set a "
        "smaller cache.max_length, train.objective.num_anchors or train.draft.num_layers, or take a larger device"
    )


def fullest_row(record: Record, num_anchors: int) -> list[Record]:
    """Return samples of a record's tokens, supervised throughout and so short that nearly every position is an anchor.

    No row as long holds more.
    """
    most = num_anchors + 1
    return [
        replace(
            record,
            input_ids=input_ids,
            loss_mask=torch.ones_like(input_ids, dtype=torch.bool),
            hidden=hidden,
            last_hidden=record.last_hidden.new_zeros(len(input_ids), record.last_hidden.shape[1]),
        )
        for input_ids, hidden in zip(torch.split(record.input_ids, most), torch.split(record.hidden, most), strict=True)
    ]


def recompute_activations(model: BlockDraft | EagleDraft) -> None:
    """Let each block forget what it computed until the backward pass asks: less memory, a third more work.

    The result is the same to the bit. An Eagle3 draft forgets whole steps, since its block is taken apart.
    """
    for part in model.layers if isinstance(model, BlockDraft) else (model,):
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)


def free_memory(device: torch.device) -> int:
    """Return the memory that this process could still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux
        return ASSUMED_FREE
    lines = meminfo.read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available


def _taken(task: Task, rows: list[list[Record]], optimizer: Stepping) -> int | None:
    """Return the bytes that a forward and backward pass takes; None where it takes more than there is."""
    try:
        before, most = _held(task, rows)
    except torch.OutOfMemoryError:
        optimizer.forget()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
        return None
    optimizer.forget()
    return most - before


def _held(task: Task, rows: list[list[Record]]) -> tuple[int, int]:
    """Return the bytes held before a forward and backward pass, and the most in it."""
    before = _at_rest(task.device)
    batch = collate_rows(rows)
    supervision = task.supervise(batch, range(sum(map(len, rows))))
    micro = MicroBatch(batch=batch, supervision=supervision).to(task.device, task.dtype)
    denominators = on_device(total_denominators([Supervised(tokens=batch, supervision=supervision)]), task.device)
    task.loss(micro, denominators, measure=task.measures(0)).loss.backward()
    return before, torch.cuda.max_memory_allocated(task.device) if task.device.type == "cuda" else _status("VmHWM")


def _at_rest(device: torch.device) -> int:
    """Return the bytes held now; the high-water mark begins anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    REFS.write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _mb(size: int | None) -> str:
    return "more than there is" if size is None else f"{size / 1e6:.0f} MB"
