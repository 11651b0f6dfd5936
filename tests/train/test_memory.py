from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from deepspec.algorithms.anchors import draw_anchors
from deepspec.algorithms.base import LossResult
from deepspec.errors import TrainingError
from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.records.batch import Record, collate_rows
from deepspec.records.stream import Cut, Draw
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import MicroBatch
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.split import CacheSplit
from deepspec.train import memory
from deepspec.train.loop import Loop
from deepspec.train.memory import fitting_micro_batch, fullest_row, recompute_activations
from deepspec.train.ready import make_loop
from deepspec.train.task import Task
from tests.given.drafts.learning import record
from tests.given.drafts.recipes import aimed, sized
from tests.given.published.site import SMALL, Site

ALONE = Cut(ranks=1, micro_batch=1)


def task_for(site: Site, algorithm: str = "dspark") -> tuple[Loop, CacheSplit]:
    cache = TargetCache(site.cache, site.placement.scratch)
    shape = sized(algorithm, num_layers=1, markov_rank=8, block_size=3)
    spec = SMALL.but(global_batch=64, draft=shape, objective=aimed(algorithm, num_anchors=8, ttt_length=2))
    loop = make_loop(spec, cache, Ranks("cpu"), site.placement, print)
    return loop, CacheSplit(cache, "train", 0, 8)


@pytest.mark.parametrize(
    ("one", "each", "free", "fits"),
    [
        (100, 50, 1000, 8),  # 800 may be taken: 100 + 14 · 50, so 15 fit; a pass on a CPU takes 8 at most
        (300, 200, 1000, 2),  # 300 + 2 · 200: three fit, of which two are taken
        (700, 200, 1000, 1),
    ],
)
def test_the_second_sample_says_how_many_fit(
    site: Site, monkeypatch: pytest.MonkeyPatch, one: int, each: int, free: int, fits: int
) -> None:
    loop, samples = task_for(site)
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    monkeypatch.setattr(memory, "_held", lambda task, rows: (50, 50 + one + each * (len(rows) - 1)))
    assert fitting_micro_batch(loop.task, samples, ALONE, print, loop.optimizer) == fits


def test_a_card_with_one_row_of_a_step_tries_no_second_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, samples = task_for(site)
    tried, said = list[int](), list[str]()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)

    def held(_: Task, rows: list[list[Record]]) -> tuple[int, int]:
        tried.append(len(rows))
        return 0, 500

    monkeypatch.setattr(memory, "_held", held)
    task = replace(loop.task, device=torch.device("cuda"))
    assert fitting_micro_batch(task, samples, Cut(ranks=64, micro_batch=1), said.append, loop.optimizer) == 1
    assert tried == [1]
    assert "more than there is" not in said[0]


def test_where_not_even_one_fits_activations_are_computed_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, samples = task_for(site)
    held = iter([(0, 900), (0, 500), (0, 700)])
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(memory, "_held", lambda task, rows: next(held))
    said = list[str]()
    assert fitting_micro_batch(loop.task, samples, ALONE, said.append, loop.optimizer) == 2
    assert "computed again" in said[0]


def test_a_second_row_that_seems_to_give_memory_back_takes_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor, where the first pass also makes what every later one finds."""
    loop, samples = task_for(site)
    held = iter([(0, 39_000_000), (0, 17_000_000)])
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    monkeypatch.setattr(memory, "_held", lambda task, rows: next(held))
    said = list[str]()
    fitting_micro_batch(loop.task, samples, ALONE, said.append, loop.optimizer)
    assert said[-1].endswith("the longest row takes 39 MB, one more 0 MB")


@dataclass(frozen=True, kw_only=True)
class OutOf(Task):
    """A task whose passes end for want of memory: of several rows, or until activations are computed again."""

    rows: int = 1
    kept: bool = True

    def loss(self, micro: MicroBatch, denominators: Mapping[str, Tensor], *, measure: bool = True) -> LossResult:
        again = isinstance(self.model.layers[0].forward, partial)
        if len(micro.batch.starts) > self.rows or not (self.kept or again):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().loss(micro, denominators, measure=measure)


def out_of(task: Task, **limits: Any) -> OutOf:
    return OutOf(**{each.name: getattr(task, each.name) for each in fields(task)}, **limits)


def test_a_second_row_for_which_there_is_no_memory_means_one(site: Site) -> None:
    loop, samples = task_for(site)
    assert fitting_micro_batch(out_of(loop.task), samples, ALONE, print, loop.optimizer) == 1


def test_out_of_memory_turns_to_computing_activations_again(site: Site) -> None:
    loop, samples = task_for(site)
    said = list[str]()
    assert fitting_micro_batch(out_of(loop.task, rows=64, kept=False), samples, ALONE, said.append, loop.optimizer) > 1
    assert "takes more than there is of" in said[0]
    assert "computed again" in said[0]


def test_a_device_too_small_for_one_row_is_named(site: Site) -> None:
    loop, samples = task_for(site)
    with pytest.raises(TrainingError, match=r"one row of \d+ tokens takes more than there is .*max_length"):
        fitting_micro_batch(out_of(loop.task, rows=0), samples, ALONE, print, loop.optimizer)


def test_a_row_too_large_says_how_much_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, samples = task_for(site)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(memory, "_held", lambda task, rows: (0, 3_001_000))
    with pytest.raises(TrainingError, match="takes 3 MB, 3 MB more than there is"):
        fitting_micro_batch(loop.task, samples, ALONE, print, loop.optimizer)


def test_the_trial_takes_the_longest_sample_and_leaves_no_trace(site: Site) -> None:
    spec = SMALL.but(global_batch=4)
    cache = TargetCache(site.cache, site.placement.scratch)
    said = list[str]()
    chosen = make_loop(spec, cache, Ranks("cpu"), site.placement.model_copy(update={"micro_batch": None}), said.append)
    assert chosen.cut.micro_batch == 4
    assert chosen.optimizer.sum_gradients() == 0
    assert any("the longest row takes" in line for line in said)


def test_the_fullest_row_has_all_the_anchors_that_a_row_of_its_length_can_hold() -> None:
    """Of 23 tokens: samples of 6, 6, 6 and 5, supervised throughout, with 5 + 5 + 5 + 4 anchors."""
    row = fullest_row(record("a", 23, [20, 21]), num_anchors=5)
    assert [len(each.input_ids) for each in row] == [6, 6, 6, 5]
    _, keep = draw_anchors(collate_rows([row]), 5, range(4))
    assert keep.sum() == 19


def test_the_trial_of_packed_rows_takes_the_fullest_row(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, samples = task_for(site)
    tried = list[list[list[Record]]]()

    def held(task: Task, rows: list[list[Record]]) -> tuple[int, int]:
        tried.append(rows)
        return 0, 100 * len(rows)

    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(memory, "_held", held)
    assert fitting_micro_batch(loop.task, samples, Cut(ranks=16, micro_batch=1, pack=True), print, loop.optimizer) == 4
    longest = max(samples.length(number) for number in samples.order(0))
    assert [[sum(len(each.input_ids) for each in row) for row in rows] for rows in tried] == [[longest], [longest] * 2]
    assert max(len(each.input_ids) for row in tried[0] for each in row) == 9  # 8 anchors


def bytes_kept(loop: Loop, micro: MicroBatch) -> int:
    """Go forward and backward; return the bytes of the tensors that were kept in between."""
    kept: dict[tuple[int, int], int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr(), tensor.numel()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loop.task.loss(micro, micro.supervision.denominators).loss
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
def test_activations_computed_again_give_the_same_gradients_and_keep_less(site: Site, algorithm: str) -> None:
    loop, samples = task_for(site, algorithm)
    rows = [[Draw(number=number, epoch=0, key=number)] for number in samples.order(0)[:3]]
    micro = loop.reader.read(rows).to(loop.task.device, loop.task.dtype)
    kept = bytes_kept(loop, micro)
    assert isinstance(loop.optimizer, MasterAdamW)
    gradient = loop.optimizer.gradient.clone()
    loop.optimizer.forget()
    recompute_activations(loop.task.model)
    less = bytes_kept(loop, micro)
    assert torch.equal(loop.optimizer.gradient, gradient)
    assert less < 0.8 * kept
