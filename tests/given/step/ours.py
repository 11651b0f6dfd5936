"""Steps of this library: the loop of the train stage, from records in host memory to new weights."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.algorithms import ALGORITHMS
from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models.compiled import compile_draft
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.optimizers.optimizer import MasterAdamW
from deepspec.records.batch import Record
from deepspec.records.stream import Cut, Stream
from deepspec.steps.ranks import Ranks
from deepspec.steps.reader import Pace, Reader, Step
from deepspec.steps.stop import StopSignal
from deepspec.steps.unread import Sieve
from deepspec.train.loop import Loop
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task
from tests.given.drafts.recipes import sized
from tests.given.step.shapes import RANK, SLOTS, Shape, loss_mask, shape_of, states
from tests.given.step.worker import Steps, fill

READERS = 4
MANY = 10**6
"""Steps: more than are ever made."""
SAMPLES = 4


@dataclass(frozen=True, slots=True)
class InMemory:
    """A few samples, read as a cache is."""

    records: Sequence[Record]

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the states of one token."""
        first = self.records[0]
        return (first.hidden.shape[1] + first.last_hidden.shape[1]) * first.hidden.element_size()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.records)

    def order(self, epoch: int) -> Sequence[int]:
        """Return their numbers."""
        del epoch
        return range(len(self.records))

    def sample_id(self, number: int) -> str:
        """Return the id of a sample."""
        return self.records[number].sample_id

    def length(self, number: int) -> int:
        """Return its tokens."""
        return len(self.records[number].input_ids)

    def record(self, number: int) -> Record:
        """Return a sample."""
        return self.records[number]

    def ahead(self, numbers: Sequence[int]) -> None:
        """Hear which are read next: all are here."""
        del numbers

    def tokens(self, number: int) -> tuple[Tensor, Tensor]:
        """Return its token ids and loss mask."""
        return self.records[number].input_ids, self.records[number].loss_mask


def record(shape: Shape, seed: int) -> Record:
    """Return a sample of random states."""
    ids, hidden, last = states(shape, seed)
    return Record(
        sample_id=str(seed), input_ids=ids, loss_mask=loss_mask(shape), hidden=hidden, last_hidden=last[31:].clone()
    )


def draft(algorithm: str, shape: Shape) -> tuple[BlockDraft | EagleDraft, TrainSpec]:
    """Return a draft with the papers' sizes, and what it is trained for."""
    eagle = algorithm == "eagle3"
    recipe = DraftRecipe(**sized(algorithm, num_layers=5, block_size=SLOTS, markov_rank=RANK))
    objective = Objective(num_anchors=shape.anchors, ttt_length=SLOTS)
    mask = None if eagle else shape.vocab - 1
    model = build_draft(new_draft_config(read(shape.target), recipe, shape.layers, mask, objective))
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    return model, TrainSpec(draft=recipe, objective=objective, precision=precision, steps=MANY, global_batch=1)


def loop_of(algorithm: str, shape: Shape, *, compiled: bool) -> Loop:
    """Return a loop at its beginning, on the card if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, spec = draft(algorithm, shape)
    fill(model.to(device))
    if compiled:
        compile_draft(model)
    task = Task(
        spec=spec, config=model.config, model=model, algorithm=ALGORITHMS[algorithm], device=torch.device(device)
    )
    samples = InMemory([record(shape, seed) for seed in range(SAMPLES)])
    card = device == "cuda"
    pace = Pace(workers=READERS if card else 1, bytes_ahead=2 << 30, pinned=card)
    return Loop(task, samples, Ranks(device), Cut(ranks=1, micro_batch=1), pace)


def gradients_of(algorithm: str, shape: Shape, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradients of the first sample's step."""
    loop = loop_of(algorithm, shape, compiled=compiled)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loop.task.model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    with closing(loop.reader.steps(0, 1)) as steps:
        (micro,) = loop.task.moved(next(steps).micro_batches())
    result = loop.task.loss(micro, micro.supervision.denominators)
    result.loss.backward()
    assert isinstance(loop.optimizer, MasterAdamW)
    return result.loss.detach(), loop.optimizer.gradient.clone()


def reader_of(loop: Loop, rows: int) -> Reader:
    """Return a reader of steps of so many rows, which reads ahead as the loop's own does."""
    stream, cut = Stream(loop.reader.samples, rows, seed=0), Cut(ranks=1, micro_batch=rows)
    return Reader(
        samples=loop.reader.samples, share=lambda step: stream.share(step, 0, cut), supervise=loop.task.supervise,
        pace=loop.reader.pace,
    )  # fmt: skip


def stepper(algorithm: str, *flags: str) -> Steps:
    """Return what makes steps; states cross from the reader's pinned memory while the step before is computed."""
    shape, card = shape_of(algorithm, small="small" in flags), torch.cuda.is_available()
    loop = loop_of(algorithm, shape, compiled=card and "plain" not in flags)
    sieve = Sieve(loop.guard.limit, 0, loop.task.device)
    readers: dict[int, Reader] = {}
    ahead: dict[int, Iterator[Step]] = {}

    def steps(rows: int, count: int) -> dict[str, float]:
        if rows not in readers:
            readers[rows] = reader_of(loop, rows)
            ahead[rows] = readers[rows].steps(0, MANY)
        waited, flops = readers[rows].waited, loop.meter.flops
        with StopSignal() as stop:
            for _ in range(count):
                loop._step(next(ahead[rows]), sieve, stop)
        loop._fetch()
        return {"waited_ms": 1e3 * (readers[rows].waited - waited), "tflop": (loop.meter.flops - flops) / 1e12}

    return steps
