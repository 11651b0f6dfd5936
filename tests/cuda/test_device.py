"""Every stage and the golden numbers, on a GPU: make test-gpu.

Where there is none, DEEPSPEC_TEST_DEVICE=cpu runs the same tests on the CPU, which says that they are right, not that a
GPU is.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.formats.scores import SCORES, read_scores
from deepspec.records.batch import on_device
from tests.given import golden
from tests.given.golden_training import BLOCK_CASES, EAGLE_CASES, block_setting, eagle_setting
from tests.given.published.chain import run_chain, told
from tests.given.targets.tiny import write_target

DEVICE = os.environ.get("DEEPSPEC_TEST_DEVICE", "cuda")
LOSS, GRADIENT = 1e-4, 1e-3
"""Relative: sums of fp32 in another order."""
HEADS = 2
TARGET = partial(write_target, heads=HEADS)
STEP_LOSS = 5e-3
ACCEPTED = 0.3
"""Tokens: where two are nearly as likely, another device may choose the other."""

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here; make test-gpu runs these on one"
)


@pytest.fixture(scope="module", autouse=True)
def full_fp32() -> Iterator[None]:
    """Golden numbers are of fp32 without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every stage makes on the CPU, of the same target."""
    return told(run_chain(tmp_path_factory.mktemp("cpu"), "cpu", target=TARGET))


def test_the_whole_chain_gives_what_it_gives_on_a_cpu(tmp_path: Path, on_cpu: dict[str, Any]) -> None:
    """Capture, trial, fit, training, gate, export, parity, evaluation and benchmark, on a target with heads of 16."""
    artifacts = run_chain(tmp_path, DEVICE, target=TARGET)
    found = told(artifacts)
    for stage in ("prepare", "regenerate", "export", "benchmark", "release"):
        assert found[stage] == on_cpu[stage], stage
    assert found["cache"]["tokens"] == on_cpu["cache"]["tokens"]
    assert found["train"] == pytest.approx(on_cpu["train"], rel=STEP_LOSS)
    assert found["evaluate"]["accepted length"] == pytest.approx(on_cpu["evaluate"]["accepted length"], abs=ACCEPTED)
    assert read_scores(artifacts["evaluate"].path(SCORES)).is_lossless


@pytest.mark.parametrize(
    ("setting", "case"),
    [
        *(pytest.param(block_setting, *case.values, marks=case.marks, id=f"blocks-{case.id}") for case in BLOCK_CASES),
        *(pytest.param(eagle_setting, *case.values, marks=case.marks, id=f"eagle3-{case.id}") for case in EAGLE_CASES),
    ],
)
def test_losses_and_gradients_are_the_golden_ones(setting: Callable[..., Any], case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    expected = golden.expected(case)
    model, batch, supervision = model.to(DEVICE), on_device(batch, DEVICE), on_device(supervision, DEVICE)
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(expected["loss"], rel=LOSS)
    result.loss.backward()
    grads = {name: p.grad.norm().item() for name, p in model.trainable() if p.grad is not None}
    for name, norm in expected["grad_norms"].items():
        assert grads.get(name, 0.0) == pytest.approx(norm, rel=GRADIENT, abs=1e-6), name
