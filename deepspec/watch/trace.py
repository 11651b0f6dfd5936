"""A trace of a few training steps by torch.profiler: where their time goes, operation by operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from deepspec.disk import writing
from deepspec.errors import StoreError
from deepspec.publish import Out

WARM_STEPS = 4
"""Steps before the traced ones, at most: the first ones compile, and fill caches."""
STEPS = 3
"""Steps in a trace."""
TRACE = "trace.json.gz"
"""Name of the file, in the format that Perfetto and chrome://tracing read."""


@contextmanager
def traced(out: Out, device: torch.device, left: int, log: Callable[[str], None]) -> Iterator[Callable[[], object]]:
    """Trace three steps of a run after some that warm it up; it changes no result.

    What a rank does in looks and saves that lie between them is in the trace, too.

    Args:
        out: the attempt: the trace is kept beside its logs in the store, and not in the artifact, whose bytes are
            those of a run that is not traced.
        device: of the model.
        left: steps that the run has still to take.
        log: told where the trace lies, or why there is none.

    Yields:
        What is to be called after each step.
    """
    if left <= STEPS:
        log(f"--profile: no trace: steps left: {left}; wanted: at least {STEPS + 1}, of which one warms up")
        yield _nothing
        return
    key = f"logs/train-{out.address}-{out.attempt}/{TRACE}"
    warm = min(WARM_STEPS, left - STEPS)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    waits = schedule(wait=warm - 1, warmup=1, active=STEPS, repeat=1)

    def keep(found: profile) -> None:
        log(_kept(found, out, key, found.step_num - warm))

    with profile(activities=activities, schedule=waits, record_shapes=True, on_trace_ready=keep) as tracing:
        yield tracing.step


def _kept(found: profile, out: Out, key: str, steps: int) -> str:
    """Put a trace into the store and return what to say; one that cannot be written ends no run."""
    path = out.scratch / "profile" / TRACE
    try:
        _export(found, path)
        out.store.put_file(path, key)
    except StoreError as error:
        return f"--profile: no trace: {error}"
    finally:
        path.unlink(missing_ok=True)
    return f"--profile: a trace of {steps} steps lies at {out.store.uri(key)} (open it in https://ui.perfetto.dev)"


def _export(found: profile, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(path))


def _nothing() -> None:
    """Trace nothing."""
