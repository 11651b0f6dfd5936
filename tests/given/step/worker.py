"""Makes training steps with one library, as many as each line on stdin asks for, and says how long they took.

    python -m tests.given.step.worker LIBRARY ALGORITHM [small] [plain]

LIBRARY is `ours`, `b1a4fa0` (this project before it was made fast on a card, first on PYTHONPATH) or `speculators`.
`plain`: of ours, with blocks that are not compiled.
A line is `ROWS STEPS`, `profile ROWS STEPS` or, of what lies on the card where it holds most, `memory ROWS STEPS`; an
answer is `STEP {"ms": …, "peak_gib": …}`, the mean of a step.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LIBRARIES = {"ours": "ours", "b1a4fa0": "before", "speculators": "peer"}
STEPS_PROFILED = 2
LONGEST = 40
"""Lines of a profile."""

Steps = Callable[[int, int], dict[str, float]]
"""`steps(rows, count)` makes so many steps of so many rows each, and returns what else is known of them, summed."""


def without_defaults() -> None:
    """Let layers be made without torch's own random weights, which take a CPU half a minute for a large draft."""
    for kind in (torch.nn.Linear, torch.nn.Embedding):
        kind.reset_parameters = lambda self: None  # type: ignore[method-assign]


def fill(model: torch.nn.Module) -> None:
    """Give a model on its device random weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)


def synchronize() -> None:
    """Wait for the card."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(steps: Steps, rows: int, count: int) -> dict[str, float]:
    """Return the mean time of a step, and the most memory that it held."""
    steps(rows, 1)
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    beside = steps(rows, count)
    synchronize()
    seconds = (time.perf_counter() - begin) / count
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    each = {name: value / count for name, value in beside.items()}
    return {"ms": 1e3 * seconds, "peak_gib": peak / 2**30, **each}


def profiled(steps: Steps, rows: int, count: int) -> str:
    """Return where the card's time goes, a table."""
    from torch.profiler import ProfilerActivity, profile

    steps(rows, 1)
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        steps(rows, count)
        synchronize()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=by, row_limit=LONGEST, max_name_column_width=70))


def held_most(steps: Steps, rows: int, count: int) -> str:
    """Return what lay on the card when it held most: MB, and where it was asked for, the largest first."""
    steps(rows, 1)
    torch.cuda.memory._record_memory_history(stacks="python")
    resting: dict[int, tuple[int, list[Any]]] = {
        block["address"]: (block["size"], [])
        for each in torch.cuda.memory._snapshot()["segments"]
        for block in each["blocks"]
        if block["state"] == "active_allocated"
    }
    steps(rows, count)
    synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    held, now, most, kept = dict(resting), sum(size for size, _ in resting.values()), 0, {}
    for event in events:
        if event["action"] == "alloc":
            held[event["addr"]] = event["size"], event["frames"]
            now += event["size"]
            if now > most:
                most, kept = now, dict(held)
        elif event["action"] == "free_completed":
            now -= held.pop(event["addr"], (0, []))[0]
    by_place: dict[str, int] = {}
    for size, frames in kept.values():
        ours = [each for each in frames if "deepspec" in each["filename"] or "inductor" in each["filename"]]
        place = " < ".join(
            f"{Path(each['filename']).name}:{each['line']} {each['name']}" for each in (ours or frames)[:3]
        )
        by_place[place or "before"] = by_place.get(place or "before", 0) + size
    lines = sorted(by_place.items(), key=lambda each: -each[1])[:LONGEST]
    return "\n".join([f"most {most / 2**20:.0f}", *(f"{size / 2**20:8.0f} {place}" for place, size in lines)])


def main(library: str, algorithm: str, *flags: str) -> None:
    """Step for as long as lines come in."""
    without_defaults()
    made = importlib.import_module(f"{__package__}.{LIBRARIES[library]}")
    steps: Steps = made.stepper(algorithm, *flags)
    for line in sys.stdin:
        *what, rows, count = line.split()
        if what == ["profile"]:
            print(profiled(steps, int(rows), int(count)))
        if what == ["memory"]:
            print(held_most(steps, int(rows), int(count)))
        told = timed(steps, int(rows), int(count))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print("STEP " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
