"""All that a card has to show, in one command: tests, tables, and what each printed, kept as it comes.

    python -m tests.benchmarks.on_a_card FOLDER [PART ...]     # FOLDER/PART.log, and FOLDER/summary.txt
    python -m tests.benchmarks.on_a_card FOLDER --minutes 14   # what is worth most of it, and no longer

    steps      the table of training steps (DEEPSPEC_BEFORE and DEEPSPEC_PEERS_PYTHON as bench_cuda.py says)
    tests      what make test-gpu runs
    decoding   plain tokens and rounds, recorded and not
    capture    capture in every codec against the forward pass alone, a minute each
    contexts   accepted length by context, to 32K

Parts without a clock run side by side, and first; the others one after another, with nothing beside them. With
`--minutes` each runs by itself, in the order above; parts that would leave those before them too little are left out,
and a part that measures for a while measures for less. A part that takes longer than it may is ended, with all
processes that it has started, and what it printed stays; so does what the others found.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.given.apart import ROOT

PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-s", "--timeout", "3600")
BENCHMARKS = "tests/benchmarks"
TESTS = ("tests/cuda", *(f"tests/interpreted/{name}_kernel.py" for name in ("adam", "loss", "own")))
WRONG = re.compile(r"^(?:FAILED|ERROR) (\S+)|^(tests/\S+::.+?) (?:FAILED|ERROR)")
"""What pytest says of a test, in its summary or, where it came to none, when the test ended."""


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and what is known of it before."""

    words: tuple[str, ...]
    limit: int
    """Seconds after which it is ended."""
    least: int
    """Seconds in which it tells something."""
    is_timed: bool = True
    """Whether it measures time, and so runs alone."""
    in_haste: Mapping[str, str] = field(default_factory=dict)
    """Environment in which it takes less."""


PARTS = {
    "steps": Part((*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_cuda.py"), 540, 300),
    "tests": Part(
        (*PYTEST, "-n", "0", "-v", "-rfE", "--tb", "short", *TESTS, "tests/cache/test_leaving.py"), 540, 180, False
    ),
    "decoding": Part((*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_decoding_cuda.py"), 240, 90),
    "capture": Part(
        (*PYTEST, "-m", "bench", f"{BENCHMARKS}/bench_capture_cuda.py"), 400, 90,
        in_haste={"DEEPSPEC_BENCH_SECONDS": "9"},
    ),
    "contexts": Part(
        ("-m", f"{BENCHMARKS.replace('/', '.')}.bench_contexts", "{folder}/contexts", "cuda"), 540, 240, False
    ),
}  # fmt: skip
"""In the order of their worth."""


class Running:
    """A part under way."""

    def __init__(self, name: str, folder: Path, seconds: float, more: Mapping[str, str] | None = None) -> None:
        """Start it, for so many seconds at most; what it prints goes into its log as it comes."""
        self.name, self.part, self.log = name, PARTS[name], folder / f"{name}.log"
        words = [word.format(folder=folder) for word in self.part.words]
        self._start, self._seconds = time.monotonic(), seconds
        path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **(more or {}), "PYTHONUNBUFFERED": "1", "PYTHONPATH": path},
            )  # fmt: skip

    def ended(self) -> str:
        """Wait for its end; return a line on it, and one on each test that failed."""
        left = self._start + self._seconds - time.monotonic()
        try:
            code: int | str = self._process.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            code = f"ended after {self._seconds:.0f} s"
        finally:
            self._end()
        lines = self.log.read_text(errors="replace").splitlines() or ["nothing printed"]
        told = f"{self.name:9} {time.monotonic() - self._start:4.0f} s, exit {code}: {lines[-1][:200]}"
        return "\n".join([told, *(f"          failed: {name}" for name in wrong(lines))])

    def _end(self) -> None:
        """End it with what it has started: a process of it that goes on computing would be in the next one's times."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def wrong(lines: Sequence[str]) -> list[str]:
    """Return the tests that pytest says failed, each once."""
    found = [match[1] or match[2] for match in map(WRONG.match, lines) if match]
    return list(dict.fromkeys(found))


def fitting(names: Sequence[str], seconds: float) -> list[str]:
    """Return the parts, of the greatest worth first, for all of which there is time to tell something."""
    kept: list[str] = []
    for name in names:
        if sum(PARTS[each].least for each in [*kept, name]) <= seconds:
            kept.append(name)
    return kept


def share(name: str, behind: Sequence[str], left: float) -> float:
    """Return the seconds that a part may take of those left, where others still come behind it."""
    return min(PARTS[name].limit, left - sum(PARTS[each].least for each in behind))


class Visit:
    """Parts that run, and what is said of each as it ends."""

    def __init__(self, folder: Path) -> None:
        """Begin the summary."""
        self._folder, self.lines = folder.resolve(), list[str]()
        folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "summary.txt").write_text("")

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        self.lines.append(line)
        print(line, flush=True)
        with (self._folder / "summary.txt").open("a") as file:
            file.write(f"{line}\n")

    def whole(self, names: Sequence[str]) -> None:
        """Run parts for as long as each takes, those without a clock side by side."""
        untimed = [name for name in names if not PARTS[name].is_timed]
        for group in [untimed, *([name] for name in names if PARTS[name].is_timed)]:
            for running in [Running(name, self._folder, PARTS[name].limit) for name in group]:
                self.say(running.ended())

    def within(self, names: Sequence[str], seconds: float) -> None:
        """Run what fits into so many seconds."""
        end, kept = time.monotonic() + seconds, fitting(names, seconds)
        for place, name in enumerate(kept):
            allowed = share(name, kept[place + 1 :], end - time.monotonic())
            self.say(Running(name, self._folder, allowed, PARTS[name].in_haste).ended())
        for name in names:
            if name not in kept:
                self.say(f"{name:9} left out: it takes {PARTS[name].least} s at least")


def main(folder: Path, names: Sequence[str], minutes: float | None = None) -> int:
    """Run parts; return 1 where one failed."""
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
        return 2
    visit = Visit(folder)
    chosen = [name for name in PARTS if name in names or not names]
    if minutes is None:
        visit.whole(chosen)
    else:
        visit.within(chosen, 60 * minutes)
    return int(any("exit 0:" not in line and "left out" not in line for line in visit.lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--minutes", type=float)
    asked = parser.parse_args()
    sys.exit(main(asked.folder, asked.parts, asked.minutes))
