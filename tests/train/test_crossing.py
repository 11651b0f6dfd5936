"""Micro-batches on their way to a card, as far as a machine without one can tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from deepspec.kernels import stream_beside
from deepspec.steps.reader import MicroBatch
from deepspec.train import task
from tests.given.apart import ROOT
from tests.train.test_reader import reader, taken

CPU = torch.device("cpu")


class Stream:
    """Stands for a stream of a card: keeps what it was told."""

    def __init__(self, *_: Any) -> None:
        self.waited_for = list[Any]()

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


@pytest.fixture
def work() -> Stream:
    """Return the stream that computes."""
    return Stream()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch, work: Stream) -> Iterator[list[Stream]]:
    """Return the streams that micro-batches cross on, one for each time that one is entered."""
    entered = list[Stream]()

    @contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        entered.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: work)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(task, "_lent", lambda tensor, stream: tensor)
    stream_beside.cache_clear()
    yield entered
    stream_beside.cache_clear()


def test_all_steps_cross_on_one_stream(streams: list[Stream]) -> None:
    """Memory taken on a stream comes back to it alone: a stream for each step would keep the states of 32 of them."""
    steps = taken(reader(), 0, 3)
    for _, _, micro_batches in steps:
        crossed = list(task._crossing(micro_batches, CPU, torch.float32))
        assert [each.batch.sample_ids for each in crossed] == [each.batch.sample_ids for each in micro_batches]
    assert len(streams) == sum(len(micro_batches) for _, _, micro_batches in steps)
    assert len(set(streams)) == 1


def test_what_is_computed_waits_for_what_it_is_computed_from_and_no_more(streams: list[Stream], work: Stream) -> None:
    ((_, _, micro_batches),) = taken(reader(), 0, 1)
    crossing = task._crossing(iter(micro_batches), CPU, torch.float32)
    found: MicroBatch = next(crossing)
    assert found.batch.sample_ids == micro_batches[0].batch.sample_ids
    assert (len(streams), len(work.waited_for)) == (2, 1)  # the second one is on its way, and is not waited for
    assert len(list(crossing)) == 1
    assert len(work.waited_for) == 2


def test_streams_are_made_in_one_place() -> None:
    made = [path.name for path in (ROOT / "deepspec").rglob("*.py") if "cuda.Stream(" in path.read_text()]
    assert made == ["kernels.py"]
