"""Makes one training step of a peer each time a line comes in, by holding the peers' script between its steps.

The script's loop calls `clip_grad_norm_` between backward and update, and `zero_grad` at the end of a step: there the
times and peaks are taken.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def resident_mib() -> float:
    """Return what the process holds now."""
    return _status("VmRSS")


def peak_mib() -> float:
    """Return the most that the process held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew: what making the model took is not looked at."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


class Hooks:
    """What is called in place of torch's functions."""

    def __init__(self) -> None:
        self.before = self.start = self.peak = self.busy = 0.0
        self.clip, self.zero, self.make = (
            torch.nn.utils.clip_grad_norm_, torch.optim.AdamW.zero_grad, torch.optim.AdamW.__init__)  # fmt: skip

    def made(self, optimizer: torch.optim.AdamW, *arguments: Any, **options: Any) -> None:
        """Start to measure when the optimizer is made: right before the first step."""
        self.make(optimizer, *arguments, **options)
        forget_peak()
        self.before = resident_mib()
        self.start, self.busy = time.perf_counter(), time.process_time()

    def clipped(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Note the peak of the first forward and backward pass."""
        self.peak = self.peak or peak_mib() - self.before
        return self.clip(*arguments, **options)

    def zeroed(self, optimizer: torch.optim.AdamW, *arguments: Any, **options: Any) -> None:
        """Tell of the step, and wait for the next line."""
        self.zero(optimizer, *arguments, **options)
        told = {
            "seconds": time.perf_counter() - self.start,
            "cpu": time.process_time() - self.busy,
            "peak_mib": self.peak,
            "state_mib": peak_mib() - self.before,
        }
        print("STEP " + json.dumps(told), flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.start, self.busy = time.perf_counter(), time.process_time()


def main(script: str, library: str, algorithm: str, dtype: str) -> None:
    """Run the script's loop with the hooks in place."""
    spec = importlib.util.spec_from_file_location("peers", script)
    assert spec
    assert spec.loader
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    hooks = Hooks()
    adam: Any = torch.optim.AdamW
    adam.__init__ = lambda *a, **k: hooks.made(*a, **k)
    adam.zero_grad = lambda *a, **k: hooks.zeroed(*a, **k)
    torch.nn.utils.clip_grad_norm_ = hooks.clipped
    if (library, algorithm) == ("specforge", "eagle3"):
        import os

        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    peers.worker(library, algorithm, dtype, 10_000, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
