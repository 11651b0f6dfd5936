"""Makes training steps with one library, as many as each line on stdin asks for, and says how long they took.

    python -m tests.given.step.worker LIBRARY ALGORITHM [small] [plain]

LIBRARY is `ours`, `b1a4fa0` (this project before it was made fast on a card, first on PYTHONPATH) or `speculators`.
`plain`: of ours, with blocks that are not compiled.
A line is `ROWS STEPS` or `profile ROWS STEPS`; an answer is `STEP {"ms": …, "peak_gib": …}`, the mean of a step.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable

import torch

LIBRARIES = {"ours": "ours", "b1a4fa0": "before", "speculators": "peer"}
STEPS_PROFILED = 2
LONGEST = 40
"""Lines of a profile."""

Steps = Callable[[int, int], float]
"""`steps(rows, count)` makes so many steps of so many rows each, and returns the seconds waited for their data."""


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
    waited = steps(rows, count)
    synchronize()
    seconds = (time.perf_counter() - begin) / count
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"ms": 1e3 * seconds, "waited_ms": 1e3 * waited / count, "peak_gib": peak / 2**30}


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


def main(library: str, algorithm: str, *flags: str) -> None:
    """Step for as long as lines come in."""
    without_defaults()
    made = importlib.import_module(f"{__package__}.{LIBRARIES[library]}")
    steps: Steps = made.stepper(algorithm, *flags)
    for line in sys.stdin:
        *what, rows, count = line.split()
        if what == ["profile"]:
            print(profiled(steps, int(rows), int(count)))
        told = timed(steps, int(rows), int(count))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print("STEP " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
