"""Tests that need a process of their own, since they change for good what the whole process is: run, and told."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the repository."""


def run_apart(path: str, which: str = "not soak", **env: str) -> None:
    """Run a file of tests by itself; fail with its last lines where one fails, or where none was run.

    Args:
        path: of the file, from the root; its name does not begin with `test_`, so that no other process collects it.
        which: marks that are run.
        env: what its environment has besides.
    """
    command = [sys.executable, "-m", "pytest", "-qm", which, "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
