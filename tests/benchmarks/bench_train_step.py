"""One training step of ours against the peers': time and added memory, in interleaved steps on one thread.

Every library runs in a process of its own that makes one step each time it is told to, so that whatever else the
machine does hits all of them alike. Goals are held against the CPU seconds of a step: with one thread they are its
wall time on a machine that does nothing else; wall times are printed beside them. The peers are `speculators` 0.9.0 and
`specforge` 0.2.0, in an environment of their own, because they pin other versions:

    python3.11 -m venv peers
    peers/bin/pip install torch==2.13.0 transformers accelerate
    peers/bin/pip install openai loguru datasets pydantic-settings httpx rich typer
    peers/bin/pip install --no-deps speculators==0.9.0 specforge==0.2.0 hs-connectors==0.9.0

    DEEPSPEC_PEERS_PYTHON   the Python with both installed: peers/bin/python; of the drafts that only speculators trains
                            (dflash2, xpress, peagle, mtp) the steps are in speculators_step.py
    DEEPSPEC_PEERS_SCRIPT   a script whose `worker(lib, algo, dtype, steps, threads)` trains with one of them: it makes
                            a model, an AdamW and a loop of forward, backward, `clip_grad_norm_`, `step`, `zero_grad`

Without them our own numbers are printed, and the test is skipped: there is nothing to hold them against.

    python -m pytest -m bench tests/benchmarks/bench_train_step.py -s
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAIRS = 5
PAIRS_VARIABLE = "DEEPSPEC_BENCH_PAIRS"
"""How many instead of these, on a machine that has no time."""
GOALS = {
    "dspark": (0.85, 0.5), "dflash": (0.9, 0.7), "eagle3": (0.8, 0.4), "dflash2": (0.85, 0.5), "xpress": (0.85, 0.5),
    "peagle": (0.85, 0.5), "mtp": (0.85, 0.5),
}  # fmt: skip
"""Algorithm -> largest share of the best peer's time, and of its added memory."""
PEERS = ("speculators", "specforge")
ALONE = ("dflash2", "xpress", "peagle", "mtp")
"""Algorithms that speculators alone trains."""
ALONE_SCRIPT = Path(__file__).with_name("speculators_step.py")
WORKER = Path(__file__).with_name("train_step_worker.py")
PEER_WORKER = Path(__file__).with_name("peer_worker.py")

pytestmark = pytest.mark.bench


@dataclass
class Stepper:
    """A process that makes one training step each time it is asked."""

    name: str
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    state_mib: float = 0.0

    @classmethod
    def start(cls, name: str, *command: str | Path) -> "Stepper":
        """Start the process and let it make its first step, which is not counted."""
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=quiet)  # fmt: skip
        stepper = cls(name, process)
        stepper._read()
        stepper.seconds.clear()
        stepper.cpu.clear()
        return stepper

    def step(self) -> None:
        """Make one step."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._read()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("STEP "):
                told = json.loads(line[5:])
                self.seconds.append(told["seconds"])
                self.cpu.append(told["cpu"])
                self.peak_mib, self.state_mib = told["peak_mib"], told["state_mib"]
                return
        pytest.fail(f"{self.name} ended with {self.process.wait()}; run its worker by hand to see why")


def _steppers(algorithm: str, dtype: str, *flags: str) -> list[Stepper]:
    ours = Stepper.start("ours", sys.executable, WORKER, algorithm, dtype, *flags)
    python, script = os.environ.get("DEEPSPEC_PEERS_PYTHON"), os.environ.get("DEEPSPEC_PEERS_SCRIPT")
    alone = algorithm in ALONE
    script = str(ALONE_SCRIPT) if alone else script
    if not python or not script:
        return [ours]
    peers = PEERS[:1] if alone else PEERS
    return [ours, *(Stepper.start(peer, python, PEER_WORKER, script, peer, algorithm, dtype) for peer in peers)]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [("dspark", ()), ("dflash", ()), ("dflash", ("--measure",)), ("eagle3", ()), *((name, ()) for name in ALONE)],
    ids=["dspark", "dflash", "dflash, acceptance measured too", "eagle3", *ALONE],
)
def test_step_against_the_best_peer(algorithm: str, flags: tuple[str, ...], dtype: str) -> None:
    """Print medians, ratios of each pair and memory; fail where a goal is missed."""
    steppers, pairs = _steppers(algorithm, dtype, *flags), int(os.environ.get(PAIRS_VARIABLE, PAIRS))
    try:
        for _ in range(pairs):
            for stepper in steppers:
                stepper.step()
    finally:
        for stepper in steppers:
            stepper.stop()
    print(f"\n{algorithm} {' '.join(flags)} {dtype}, {pairs} interleaved steps: median (spread)")
    for stepper in steppers:
        print(
            f"  {stepper.name:12} step {_spread(stepper.cpu)} CPU s, "
            f"{_spread(stepper.seconds)} s by the clock, forward + backward peak +{stepper.peak_mib:.0f} MiB, "
            f"with the optimizer's state +{stepper.state_mib:.0f} MiB"
        )
    if len(steppers) == 1:
        pytest.skip(
            "no peers: DEEPSPEC_PEERS_PYTHON and DEEPSPEC_PEERS_SCRIPT are not set; how to: see this file's top"
        )
    ours, *peers = steppers
    fastest = min(peers, key=lambda peer: statistics.median(peer.cpu))
    smallest = min(peers, key=lambda peer: peer.peak_mib)
    ratios = [mine / theirs for mine, theirs in zip(ours.cpu, fastest.cpu, strict=True)]
    by_clock = [mine / theirs for mine, theirs in zip(ours.seconds, fastest.seconds, strict=True)]
    memory = ours.peak_mib / smallest.peak_mib
    time_goal, memory_goal = GOALS[algorithm]
    print(f"  time / {fastest.name}: {_spread(ratios)}, goal {time_goal} (by the clock {_spread(by_clock)}); "
          f"memory / {smallest.name}: {memory:.2f}, goal {memory_goal}")  # fmt: skip
    if flags:
        return
    assert statistics.median(ratios) <= time_goal
    assert memory <= memory_goal


def test_memory_does_not_grow_with_positions_times_vocabulary() -> None:
    """V = 151,936, 512 anchors, T = 4096, hidden 576 in 8 GiB; the unchunked formula alone would need over 20."""
    stepper = Stepper.start("ours", sys.executable, WORKER, "dspark", "fp32", "--large")
    stepper.stop()
    positions, vocabulary = 512 * 7, 151936
    plain = 10 * positions * vocabulary * 4 / 2**30
    print(
        f"\nlarge: forward + backward peak +{stepper.peak_mib / 1024:.2f} GiB over the model, whole process "
        f"{stepper.state_mib / 1024:.2f} GiB; ten fp32 tensors of {positions} × {vocabulary} would be {plain:.1f} GiB"
    )
    assert stepper.state_mib < 8 * 1024
