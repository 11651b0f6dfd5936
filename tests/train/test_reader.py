"""The reader gives the loop what the stream says, ahead of it and within its bounds."""

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
import torch

from deepspec.errors import CorruptArtifactError, DeepSpecError, TrainingError
from deepspec.records.batch import Record, Tokens, collate_rows
from deepspec.records.stream import Cut, Stream
from deepspec.steps.reader import MicroBatch, Pace, Reader
from tests.given.drafts.toy import ToyAlgorithm, ToySamples, ToySupervision


def supervise(tokens: Tokens, keys: Sequence[int]) -> ToySupervision:
    return ToyAlgorithm().supervise(None, None, tokens, keys)


def reader(
    samples: ToySamples | None = None, *, batch: int = 4, micro: int = 2, pack: bool = False, **pace: Any
) -> Reader:
    samples = samples or ToySamples()
    stream, cut = Stream(samples, batch, 0), Cut(ranks=1, micro_batch=micro, pack=pack)
    return Reader(
        samples=samples, share=lambda step: stream.share(step, 0, cut), supervise=supervise, pace=Pace(**pace)
    )


def taken(found: Reader, start: int, end: int) -> list[tuple[int, list[str], list[MicroBatch]]]:
    """Return what the loop sees of some steps."""
    with closing(found.steps(start, end)) as steps:
        return [(step.tokens, step.sample_ids, list(step.micro_batches())) for step in steps]


def equal(one: MicroBatch, other: MicroBatch) -> bool:
    pairs = zip((one.batch, one.supervision), (other.batch, other.supervision), strict=True)
    return all(
        torch.equal(mine, theirs) if isinstance(mine := getattr(a, name), torch.Tensor) else mine == theirs
        for a, b in pairs
        for name in a.__dataclass_fields__
        if isinstance(theirs := getattr(b, name), torch.Tensor)
    )


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("workers", "bytes_ahead"), [(1, 1), (1, 1 << 20), (3, 1), (3, 500), (4, 1 << 20)])
def test_neither_threads_nor_room_change_what_is_read(workers: int, bytes_ahead: int, pack: bool) -> None:
    wanted = taken(reader(pack=pack), 0, 7)
    found = taken(reader(pack=pack, workers=workers, bytes_ahead=bytes_ahead), 0, 7)
    for (tokens, ids, micros), (tokens_too, ids_too, micros_too) in zip(wanted, found, strict=True):
        assert (tokens, ids) == (tokens_too, ids_too)
        assert all(equal(one, other) for one, other in zip(micros, micros_too, strict=True))


def test_a_micro_batch_is_the_records_of_its_rows_and_what_is_supervised_in_them() -> None:
    samples, stream = ToySamples(), Stream(ToySamples(), 4, 0)
    cut = Cut(ranks=1, micro_batch=2)
    (_, ids, micros), *_ = taken(reader(samples), 2, 4)
    pieces = stream.share(2, 0, cut).pieces
    assert ids == [samples.sample_id(draw.number) for rows in pieces for row in rows for draw in row]
    for micro, rows in zip(micros, pieces, strict=True):
        batch = collate_rows([[samples.record(draw.number) for draw in row] for row in rows])
        assert torch.equal(micro.batch.hidden, batch.hidden)
        assert torch.equal(micro.batch.last_hidden, batch.last_hidden)
        wanted = supervise(batch, [draw.key for row in rows for draw in row])
        assert torch.equal(micro.supervision.weights, wanted.weights)


class Counting(ToySamples):
    """Samples that count the bytes of states which were read and not taken yet, and who drew them."""

    def __init__(self) -> None:
        super().__init__(12)
        self.read = self.most = 0
        self.lock, self.drawn = threading.Lock(), set[threading.Thread]()

    def order(self, epoch: int) -> Sequence[int]:
        self.drawn.add(threading.current_thread())
        return super().order(epoch)

    def record(self, number: int) -> Record:
        with self.lock:
            self.read += self.length(number) * self.state_bytes
            self.most = max(self.most, self.read)
        return super().record(number)


def test_states_read_ahead_keep_within_their_room() -> None:
    samples = Counting()
    room = 4 * 11 * samples.state_bytes
    for step in reader(samples, batch=12, micro=1, workers=3, bytes_ahead=room).steps(0, 4):
        for micro in step.micro_batches():
            with samples.lock:
                samples.read -= int((micro.batch.ends > 0).sum()) * samples.state_bytes
    longest = 11 * samples.state_bytes
    assert room - longest <= samples.most <= room + longest  # and the one that the loop has


def test_no_two_threads_draw() -> None:
    samples = Counting()
    taken(reader(samples, workers=4), 0, 9)
    assert samples.drawn == {threading.current_thread()}


def test_nothing_is_read_where_no_step_is_asked_for() -> None:
    assert taken(reader(), 4, 4) == []


def broken(number: int, error: Exception, name: str = "record") -> ToySamples:
    """Return samples of which one cannot be read."""
    samples = ToySamples()
    real = getattr(samples, name)

    def read(asked: int) -> Any:
        if asked == number:
            raise error
        return real(asked)

    setattr(samples, name, read)
    return samples


@pytest.mark.parametrize("name", ["record", "tokens"])
def test_an_error_of_a_thread_reaches_the_loop_where_its_sample_is_asked_for(name: str) -> None:
    bad = Stream(ToySamples(), 4, 0).draws(2)[0].number
    with closing(reader(broken(bad, TrainingError("it is damaged"), name), workers=2).steps(0, 9)) as steps:
        for _ in range(2):
            list(next(steps).micro_batches())
        with pytest.raises(TrainingError, match=rf"sample sample-{bad}: it is damaged"):
            list(next(steps).micro_batches())


@pytest.mark.parametrize(
    ("error", "kind"),
    [(CorruptArtifactError("part-3 is cut off"), CorruptArtifactError), (OSError("disk"), TrainingError)],
)
def test_an_unreadable_sample_is_named(error: Exception, kind: type[DeepSpecError]) -> None:
    with pytest.raises(kind, match=r"sample sample-3.*(part-3|disk)"):
        taken(reader(broken(3, error)), 0, 3)


def test_no_thread_is_left_when_the_loop_ends_early() -> None:
    before = set(threading.enumerate())
    with closing(reader(workers=3).steps(0, 100)) as steps:
        next(steps)
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before
