"""All that a card has to show, in one command: tests, tables, and what each printed, kept as it comes.

    python -m tests.benchmarks.on_a_card FOLDER [PART ...]     # FOLDER/PART.log, and a table of how each part ended

    tests      what make test-gpu runs
    contexts   accepted length by context, to 32K
    steps      the table of training steps (DEEPSPEC_BEFORE and DEEPSPEC_PEERS_PYTHON as bench_cuda.py says)
    capture    capture in every codec against the forward pass alone, a minute each
    decoding   plain tokens and rounds, recorded and not

Parts without a clock run side by side, and first; the others one after another, with nothing beside them. A part that
takes longer than its limit is ended, and what it printed stays; so does what the others found.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.given.apart import ROOT

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-s", "--timeout", "3600")
BENCHMARKS = "tests/benchmarks"
TESTS = ("tests/cuda", *(f"tests/interpreted/{name}_kernel.py" for name in ("adam", "loss", "own")))


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and what is known of it before."""

    words: tuple[str, ...]
    limit: int
    """Seconds after which it is ended."""
    is_timed: bool = True
    """Whether it measures time, and so runs alone."""


PARTS = {
    "tests": Part(
        (*PYTEST, "-n", "0", "-v", "-rfE", "--tb", "short", *TESTS, "tests/cache/test_leaving.py"), 540, is_timed=False
    ),
    "contexts": Part(("-m", f"{BENCHMARKS.replace('/', '.')}.bench_contexts", "{folder}/contexts", "cuda"), 540, False),
    "steps": Part((*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_cuda.py"), 540),
    "capture": Part((*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_capture_cuda.py"), 400),
    "decoding": Part((*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_decoding_cuda.py"), 240),
}


class Running:
    """A part under way."""

    def __init__(self, name: str, folder: Path) -> None:
        """Start it; what it prints goes into its log as it comes."""
        self.name, self.part, self.log = name, PARTS[name], folder / f"{name}.log"
        words = [word.format(folder=folder) for word in self.part.words]
        self._start = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            )  # fmt: skip

    def ended(self) -> str:
        """Wait for its end; return a line on it."""
        left = self._start + self.part.limit - time.monotonic()
        try:
            code: int | str = self._process.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = f"ended after its limit of {self.part.limit} s"
        lines = self.log.read_text(errors="replace").splitlines() or ["nothing printed"]
        return f"{self.name:9} {time.monotonic() - self._start:4.0f} s, exit {code}: {lines[-1][:200]}"


def main(folder: Path, names: Sequence[str]) -> int:
    """Run parts; return 1 where one failed."""
    folder.mkdir(parents=True, exist_ok=True)
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
        return 2
    chosen = [name for name in PARTS if name in names or not names]
    untimed = [name for name in chosen if not PARTS[name].is_timed]
    groups = [untimed, *([name] for name in chosen if PARTS[name].is_timed)]
    lines = []
    for group in groups:
        for running in [Running(name, folder.resolve()) for name in group]:
            lines.append(running.ended())
            print(lines[-1], flush=True)
    return int(any("exit 0:" not in line for line in lines))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
