"""What only a card can show of training: no waiting, memory that runs out, a run that was killed."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepspec.errors import TrainingError
from deepspec.records.batch import Record
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve
from deepspec.train.loop import Loop
from deepspec.train.memory import _taken, fitting_micro_batch
from tests.cuda.test_device import DEVICE, HEADS, TARGET
from tests.given.apart import ROOT
from tests.given.heard import Heard
from tests.given.published.chain import run_chain
from tests.given.some import some
from tests.given.step.ours import MANY, gradients_of, loop_of, reader_of
from tests.given.step.shapes import SMALL, SMALL_LAYERS, Shape

on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here; make test-gpu runs these")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU here; make test-gpu runs these on one"
)
SHAPE = Shape(SMALL, SMALL_LAYERS, length=256, anchors=16)
LONG = Shape({**SMALL, "vocab_size": 32768, "max_position_embeddings": 4096}, SMALL_LAYERS, length=4096, anchors=512)

TRAIN: dict[str, Any] = {"steps": 60, "checkpoint_every": 5}
CHAIN = f"""
import sys
from functools import partial
from pathlib import Path
from tests.given.published.chain import run_chain
from tests.given.targets.tiny import write_target
run_chain(Path(sys.argv[1]), {DEVICE!r}, target=partial(write_target, heads={HEADS}), **{TRAIN!r})
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@on_a_card
@pytest.mark.parametrize(
    ("algorithm", "compiled"), [("dspark", False), ("dflash", False), ("eagle3", False), ("dspark", True)]
)
def test_a_step_waits_for_nothing(algorithm: str, compiled: bool) -> None:
    loop = loop_of(algorithm, SHAPE, compiled=compiled)
    steps, sieve = reader_of(loop, 2).steps(0, MANY), Sieve(1, 0, loop.task.device)
    with StopSignal() as stop:
        for _ in range(2):
            loop._step(next(steps), sieve, stop)
        taken = [next(steps) for _ in range(1)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop._step(taken[0], sieve, stop)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    loop._fetch()
    steps.close()


@on_a_card
@pytest.mark.parametrize("algorithm", ["dspark", "dflash2", "eagle3"])
def test_a_compiled_draft_has_the_gradients_of_one_that_is_not(algorithm: str) -> None:
    """In bf16, of 150 tokens and 112 slots: neither is a whole tile."""
    shape = Shape(SMALL, SMALL_LAYERS, length=150, anchors=16)
    plain, compiled = (gradients_of(algorithm, shape, compiled=compiled) for compiled in (False, True))
    torch.testing.assert_close(compiled[0], plain[0], rtol=5e-3, atol=0)
    assert torch.linalg.vector_norm(compiled[1] - plain[1]) < 0.05 * torch.linalg.vector_norm(plain[1])


def trial(loop: Loop, limit: int) -> tuple[int, list[str]]:
    """Return what fits into so many bytes beyond what is held, and what was said."""
    said = list[str]()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + limit) / total)
    try:
        return fitting_micro_batch(loop.task, loop.reader.samples, loop.cut, said.append, loop.optimizer), said
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def reserved(loop: Loop, row: list[Record]) -> int:
    """Return the bytes that the allocator takes of the card for a pass of one row: more than what lies there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    assert _taken(loop.task, [row], loop.optimizer) is not None
    return torch.cuda.max_memory_reserved() - before


@on_a_card
def test_the_trial_survives_memory_that_runs_out() -> None:
    loop = loop_of("dspark", LONG, compiled=False)
    loop.task = replace(loop.task, spec=loop.task.spec.but(global_batch=2))
    row = [loop.reader.samples.record(0)]
    one, two = (some(_taken(loop.task, [row] * rows, loop.optimizer)) for rows in (1, 2))
    least = reserved(loop, row)
    assert least < two, "a second row adds less than the allocator leaves free in its pieces"
    size, said = trial(loop, (least + two) // 2)
    assert size == 1, said
    with pytest.raises(TrainingError, match="even with activations computed again"):
        trial(loop, one // 20)
    assert trial(loop, 3 * two)[0] == 2  # nothing is held that the trials before could not have


def test_a_run_that_was_killed_goes_on_and_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    process = subprocess.Popen([sys.executable, "-c", CHAIN, str(killed)], cwd=ROOT, env=ENVIRONMENT)
    while process.poll() is None and not list(killed.glob("scratch/**/checkpoints/last/step-*")):
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    heard = Heard()
    resumed = run_chain(killed, DEVICE, target=TARGET, report=heard, **TRAIN)
    unbroken = run_chain(whole, DEVICE, target=TARGET, **TRAIN)
    assert any("going on after step" in line for line in heard.lines)
    ours, theirs = (load_file(each["train"].path("model.safetensors")) for each in (resumed, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
