"""The speculators library in an environment of its own loads our form: its pins and ours cannot both hold."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

PACKAGES = ("speculators==0.9.0", "hs-connectors==0.9.0", "loguru==0.7.3")
"""What it needs besides what lies in our environment."""


def test_speculators_loads_our_form_in_an_environment_of_its_own(tmp_path: Path) -> None:
    venv.create(tmp_path / "own", with_pip=True)
    python = tmp_path / "own" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, *PACKAGES], check=False, timeout=300).returncode:
        pytest.skip("speculators cannot be installed here; it needs a package index")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = tmp_path / "own" / "lib" / version / "site-packages" / "ours.pth"
    ours.write_text(sysconfig.get_path("purelib"))
    tests = Path(__file__).with_name("test_speculators.py")
    done = subprocess.run(
        [str(python), "-m", "pytest", "-n", "0", "-q", str(tests)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout, "what is skipped was not held against theirs" + done.stdout[-3000:]
