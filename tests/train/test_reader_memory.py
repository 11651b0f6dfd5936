"""The reader's host memory is bounded by bytes, not by steps: measured at the shapes of Qwen3-4B, records made up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.given.step.reader_worker import REFS

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not REFS.exists(), reason="only Linux tells what a process held at most")
def test_a_step_of_a_4b_target_passes_through_a_quarter_of_its_bytes() -> None:
    """48 samples of 870 tokens of 30,720 bytes: 1.28 GB a step, three steps; 100 MiB are read ahead by two threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.given.step.reader_worker", "48", "2", "2", "100"],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},  # what is freed is given back at once
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["step_bytes"] == 48 * 870 * 30_720
    assert told["bound_bytes"] == (100 << 20) + 4 * 2 * 870 * 30_720
    assert told["peak_bytes"] <= told["bound_bytes"] < told["step_bytes"] / 4
