"""`make test-costs` counts the processes that tests start, on every worker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUSY = "import time\nwhile time.process_time() < 0.5: pass"
TEST = f"import subprocess, sys\n\ndef test_busy():\n    subprocess.run([sys.executable, '-c', {BUSY!r}], check=True)\n"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_is_charged_with_the_processes_that_it_starts(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_dear.py").write_text(TEST)
    (tmp_path / "test_cheap.py").write_text("def test_nothing():\n    pass\n")
    words = ["-p", "tests.costs", "-n", workers, "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    spent = {name: float(told) for told, name in re.findall(r"([\d.]+) s  (\S+)", done.stdout)}
    assert spent["test_dear.py"] >= 0.5
    assert spent["test_dear.py"] > spent["test_cheap.py"]
    assert "minutes of the processor" in done.stdout
