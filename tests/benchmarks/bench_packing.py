"""Steps of samples in rows of their own against steps of packed rows: processor time, and what of it is padding.

Lengths are as of chats (32 to 4096 tokens, mean 870), an eighth of each, and so are the anchors. The step's time is
that of supervision, loss and gradients, in turns with the other way of cutting it.

    python -m pytest -m bench tests/benchmarks/bench_packing.py -s
"""

import random
import statistics
import time
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.models.draft import build_draft
from deepspec.records.batch import Record
from deepspec.records.stream import Cut, Share, Stream
from deepspec.start.initial import initialize
from deepspec.steps.reader import MicroBatch, Reader, Supervised
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task, total_denominators
from tests.given.drafts.recipes import aimed, sized

pytestmark = pytest.mark.bench

SCALE = 8
HIDDEN, VOCAB, LAYERS = 192, 8192, (1, 3)
STEPS = {8: 8, 64: 2}
"""Samples of a step -> steps."""
MICRO_BATCH = 8


class Chats:
    """Samples of chat-like lengths, the first third a prompt."""

    def __init__(self, count: int) -> None:
        rng = random.Random(0)
        self.lengths = [min(4096, max(32, int(rng.lognormvariate(6.4, 0.9)))) // SCALE for _ in range(count)]

    state_bytes = 4 * (len(LAYERS) + 1) * HIDDEN

    def __len__(self) -> int:
        return len(self.lengths)

    def order(self, epoch: int) -> list[int]:
        return list(range(len(self)))

    def ahead(self, numbers: Sequence[int]) -> None:
        pass

    def sample_id(self, number: int) -> str:
        return f"chat-{number}"

    def length(self, number: int) -> int:
        return self.lengths[number]

    def tokens(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        record = self.record(number)
        return record.input_ids, record.loss_mask

    def record(self, number: int) -> Record:
        length, generator = self.lengths[number], torch.Generator().manual_seed(number)
        mask = torch.arange(length) >= length // 3
        return Record(
            sample_id=self.sample_id(number),
            input_ids=torch.randint(0, VOCAB - 1, (length,), generator=generator),
            loss_mask=mask,
            hidden=torch.randn(length, len(LAYERS) * HIDDEN, generator=generator),
            last_hidden=torch.randn(int(mask.sum()) + 1, HIDDEN, generator=generator),
        )


def task_for(algorithm: str, global_batch: int) -> Task:
    shape = read({
        "model_type": "qwen3", "hidden_size": HIDDEN, "intermediate_size": 512, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCAB, "num_hidden_layers": 6,
        "max_position_embeddings": 4096})  # fmt: skip
    spec = TrainSpec(
        draft=sized(algorithm, num_layers=2, markov_rank=32),
        objective=aimed(algorithm, num_anchors=512 // SCALE, ttt_length=4),
        global_batch=global_batch,
        precision="fp32",
    )
    mask = None if algorithm == "eagle3" else VOCAB - 1
    model = build_draft(new_draft_config(shape, spec.draft, LAYERS, mask, spec.objective))
    initialize(model, seed=0)
    return Task(
        spec=spec, config=model.config, model=model, algorithm=ALGORITHMS[algorithm], device=torch.device("cpu")
    )


def step(task: Task, pieces: list[MicroBatch]) -> tuple[float, float]:
    """Return loss and processor seconds of a step."""
    begin = time.process_time()
    parts = [Supervised(tokens=micro.batch, supervision=micro.supervision) for micro in pieces]
    denominators, loss = total_denominators(parts), 0.0
    for micro in task.moved(pieces):
        result = task.loss(micro, denominators)
        result.loss.backward()
        loss += result.loss.item()
    return loss, time.process_time() - begin


def _always(share: Share, step: int) -> Share:
    return share


def wasted(pieces: list[MicroBatch]) -> tuple[float, float]:
    """Return the shares of positions and of blocks that are padding."""
    batches = [micro.batch for micro in pieces]
    inside = sum(int((batch.starts < batch.ends).sum()) for batch in batches)
    keeps = [getattr(micro.supervision, "keep", torch.ones(1)) for micro in pieces]
    blocks = sum(int(keep.sum()) for keep in keeps) / sum(keep.numel() for keep in keeps)
    return 1 - inside / sum(batch.starts.numel() for batch in batches), 1 - blocks


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
@pytest.mark.parametrize("global_batch", STEPS)
def test_packed_steps_against_unpacked_ones(algorithm: str, global_batch: int) -> None:
    torch.set_num_threads(1)
    task, samples = task_for(algorithm, global_batch), Chats(STEPS[global_batch] * global_batch)
    stream = Stream(samples, global_batch, seed=0)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    padding: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(STEPS[global_batch]):
        losses = []
        for pack in (False, True):
            share = stream.share(number, 0, Cut(ranks=1, micro_batch=MICRO_BATCH, pack=pack))
            reader = Reader(samples=samples, share=partial(_always, share), supervise=task.supervise)
            pieces = [reader.read(rows) for rows in share.pieces]
            padding[pack].append(wasted(pieces))
            loss, spent = step(task, pieces)
            losses.append(loss)
            seconds[pack].append(spent)
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for pack in (False, True):
        positions, blocks = (statistics.mean(share) for share in zip(*padding[pack], strict=True))
        told = f"{statistics.mean(seconds[pack]) * 1e3:.0f} ms; padding {positions:.0%}, of blocks {blocks:.0%}"
        print(f"\n{algorithm}, steps of {global_batch}, {'packed' if pack else 'a row each'}: {told}")
    ratio = statistics.mean(seconds[True]) / statistics.mean(seconds[False])
    print(f"packed × {ratio:.2f}")
