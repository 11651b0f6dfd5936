"""One training step on a card: ours, ours at b1a4fa0, and speculators 0.9.0, at the shapes of Qwen3-4B.

Every library runs in a process of its own that makes a few steps each time it is told to, one after another, so that
whatever the card and the host do hits all alike. Ratios are of steps made side by side.

    git archive b1a4fa0 deepspec | tar -x -C before        # what ratios are held against
    DEEPSPEC_BEFORE=before python -m pytest -m bench tests/benchmarks/bench_cuda.py -s

    DEEPSPEC_BEFORE          a folder with `deepspec/` of b1a4fa0
    DEEPSPEC_PEERS_PYTHON    a Python with speculators 0.9.0 (bench_train_step.py says how); default: this one
    DEEPSPEC_BENCH_TOGETHER=1  all processes are started at once: faster, on a card of 140 GB
    DEEPSPEC_BENCH_SMALL=1   small shapes, on the CPU if there is no card: shows that it runs

A library that is not there is left out; what is held against it is not asserted.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from deepspec.watch.meter import device_peak

ROOT = Path(__file__).parents[2]
ROUNDS, STEPS = 5, 8
"""Of eight steps one counts acceptance where the loss does not need it (deepspec/train/task.py)."""
GOALS = {("dspark", 1): 0.43, ("dspark", 4): 0.52, ("dflash", 1): 0.43, ("eagle3", 1): 0.44}
"""Algorithm, rows of a pass -> largest share of the time of b1a4fa0."""
MEMORY, AGAINST_PEER = 0.85, 0.6
"""Largest share of the memory of b1a4fa0, and of the time of speculators."""
ALGORITHMS = ("dspark", "dflash", "eagle3")
NAMES = ("ours", "b1a4fa0", "speculators")
SMALL = bool(os.environ.get("DEEPSPEC_BENCH_SMALL"))

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not SMALL and not torch.cuda.is_available(), reason="there is no GPU here"),
]


@dataclass
class Library:
    """A process that makes steps when it is asked."""

    name: str
    process: subprocess.Popen[str]
    ms: dict[int, list[float]] = field(default_factory=dict)
    """Rows of a pass -> of a step, by round."""
    peak_gib: dict[int, float] = field(default_factory=dict)
    tflop: dict[int, float] = field(default_factory=dict)
    """Of the products of a step; where the library counts them."""

    def steps_of(self, algorithm: str, rows: int) -> bool:
        """Return whether it is asked for so many rows: speculators, whose logits are whole, only for one."""
        return (algorithm, rows) in GOALS and (rows == 1 or self.name != "speculators")

    def ask(self, rows: int, steps: int) -> None:
        """Ask for steps; `told` waits for them."""
        assert self.process.stdin
        self.process.stdin.write(f"{rows} {steps}\n")
        self.process.stdin.flush()

    def told(self) -> dict[str, float] | None:
        """Return what the process said of its steps; None where it has ended."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("STEP "):
                found: dict[str, float] = json.loads(line[5:])
                return found
        return None

    def profile(self) -> str:
        """Return where the card's time goes in steps of one row."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("profile 1 2\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith("STEP "):
                break
            lines.append(line.rstrip())
        return "\n".join(lines)

    def measure(self, rows: int) -> None:
        """Make a round of steps."""
        self.ask(rows, STEPS)
        found = self.told()
        if found is None:
            pytest.fail(f"{self.name} ended with {self.process.wait()}")
        self.ms.setdefault(rows, []).append(found["ms"])
        self.peak_gib[rows] = found["peak_gib"]
        self.tflop[rows] = found.get("tflop", 0.0)


def start(name: str, algorithm: str) -> Library | None:
    """Start a library's process; None where it is not there."""
    before, python = os.environ.get("DEEPSPEC_BEFORE"), os.environ.get("DEEPSPEC_PEERS_PYTHON", sys.executable)
    paths = [*([Path(before).resolve()] if before and name == "b1a4fa0" else []), ROOT]
    if (name == "b1a4fa0" and not before) or (
        name == "speculators" and subprocess.run([python, "-c", "import speculators"]).returncode
    ):
        return None
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    command = [python if name == "speculators" else sys.executable, "-m", "tests.given.step.worker", name]
    process = subprocess.Popen(
        [*command, algorithm, *(["small"] if SMALL else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd="/", env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return Library(name, process)


def spread(values: list[float]) -> str:
    """Return median, smallest and largest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def ratio(ours: list[float], other: list[float]) -> float:
    """Return the median of the ratios of rounds made side by side."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def warmed(names: Sequence[str], algorithms: Sequence[str]) -> dict[str, list[Library]]:
    """Return the libraries that are there, by algorithm, each after a first step of every kind, all at once."""
    found = {each: [made for name in names if (made := start(name, each)) is not None] for each in algorithms}
    for rows in sorted({rows for _, rows in GOALS}):
        asked = [(each, made) for each, all_made in found.items() for made in all_made if made.steps_of(each, rows)]
        for _, library in asked:
            library.ask(rows, 1)
        for algorithm, library in asked:
            if library.told() is None:
                print(f"{library.name} makes no step of {algorithm} here: it ended with {library.process.wait()}")
                found[algorithm].remove(library)
    return found


@pytest.fixture(scope="module")
def together() -> Iterator[dict[str, list[Library]]]:
    """Start everything at once where the card holds it: compiling takes longer than all else."""
    libraries: dict[str, list[Library]] = {}
    if os.environ.get("DEEPSPEC_BENCH_TOGETHER"):
        libraries = warmed(("ours", "b1a4fa0"), ALGORITHMS)
        for algorithm, more in warmed(("speculators",), ALGORITHMS).items():
            libraries[algorithm] += more
    yield libraries
    stop(library for made in libraries.values() for library in made)


def stop(libraries: Iterable[Library]) -> None:
    """End processes."""
    for library in libraries:
        library.process.kill()
        library.process.wait()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_step(algorithm: str, together: dict[str, list[Library]]) -> None:
    """Print medians, peaks and ratios; fail where a goal is missed."""
    kinds = [rows for name, rows in GOALS if name == algorithm]
    libraries = together.get(algorithm) or warmed(NAMES, [algorithm])[algorithm]
    try:
        for _ in range(ROUNDS):
            for library in libraries:
                for rows in kinds:
                    if library.steps_of(algorithm, rows):
                        library.measure(rows)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"\n{algorithm}, {device}, torch {torch.__version__}: {ROUNDS} rounds of {STEPS} steps, ms a sample")
        missed = [line for rows in kinds for line in told_of(algorithm, rows, libraries)]
        print(f"  two steps of ours, under the profiler:\n{libraries[0].profile()}", flush=True)
    finally:
        stop(libraries)
    assert SMALL or not missed, "; ".join(missed)


def utilization(tflop: float, ms: float) -> str:
    """Return the share of the card's peak that products take, in words; nothing where it is not known."""
    peak = device_peak(torch.device("cuda")) if torch.cuda.is_available() else None
    return f", MFU {tflop * 1e15 / ms / peak:.3f}" if peak and tflop else ""


def told_of(algorithm: str, rows: int, libraries: list[Library]) -> list[str]:
    """Print what was found of one kind of step; return what misses a goal."""
    ours, *others = libraries = [library for library in libraries if library.steps_of(algorithm, rows)]
    missed = []
    for library in libraries:
        each = [ms / rows for ms in library.ms[rows]]
        used = utilization(library.tflop[rows], statistics.median(library.ms[rows]))
        print(f"  {rows} rows, {library.name:12} {spread(each)} ms, peak {library.peak_gib[rows]:.1f} GiB{used}")
    for other in others:
        time = ratio(ours.ms[rows], other.ms[rows])
        memory = ours.peak_gib[rows] / max(other.peak_gib[rows], 1e-9)
        goals = (AGAINST_PEER, 1.0) if other.name == "speculators" else (GOALS[algorithm, rows], MEMORY)
        print(f"    of {other.name}: time {time:.3f}, goal {goals[0]}; memory {memory:.3f}, goal {goals[1]}")
        missed += [f"{algorithm} of {rows} rows takes {time:.3f} of {other.name}"] * (time > goals[0])
        missed += [f"{algorithm} of {rows} rows holds {memory:.3f} of {other.name}"] * (memory > goals[1])
    return missed
