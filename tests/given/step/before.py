"""Steps of this library at b1a4fa0, before it was made fast on a card: run with that tree first on PYTHONPATH."""

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.families import read
from deepspec.formats.draft_config import new_draft_config
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.formats.records import Batch
from deepspec.models import build_draft
from deepspec.train.data import MicroBatch
from deepspec.train.optimizer import MasterAdamW
from deepspec.train.ranks import Ranks
from deepspec.train.spec import TrainSpec
from deepspec.train.task import Task, total_denominators
from tests.given.step.shapes import RANK, SLOTS, Shape, loss_mask, shape_of, states
from tests.given.step.worker import Steps, fill


def batch_of(shape: Shape, rows: int) -> Batch:
    """Return a batch as its reader made them."""
    made = [states(shape, seed) for seed in range(rows)]
    return Batch(
        sample_ids=tuple(map(str, range(rows))),
        starts=torch.zeros(rows, shape.length, dtype=torch.int64),
        ends=torch.full((rows, shape.length), shape.length),
        input_ids=torch.stack([ids for ids, _, _ in made]),
        loss_mask=loss_mask(shape).expand(rows, -1),
        hidden=torch.stack([hidden for _, hidden, _ in made]),
        last_hidden=torch.stack([last for _, _, last in made]),
    )


def stepper(algorithm: str, *flags: str) -> Steps:
    """Return what makes steps."""
    shape, device = shape_of(algorithm, small="small" in flags), "cuda" if torch.cuda.is_available() else "cpu"
    eagle = algorithm == "eagle3"
    recipe = DraftRecipe(
        algorithm=algorithm, num_layers=1 if eagle else 5, block_size=SLOTS, markov_rank=RANK * (algorithm == "dspark")
    )
    objective = Objective(num_anchors=shape.anchors, ttt_length=SLOTS)
    mask = None if eagle else shape.vocab - 1
    model = build_draft(new_draft_config(read(shape.target), recipe, shape.layers, mask, objective))
    spec = TrainSpec(draft=recipe, objective=objective, precision="bf16" if device == "cuda" else "fp32")
    model = model.to(device)
    fill(model)
    task = Task(
        spec=spec, config=model.config, model=model, algorithm=ALGORITHMS[algorithm], device=torch.device(device)
    )
    optimizer, batches, made = MasterAdamW(model, spec, task.dtype, Ranks(device)), {}, [0]

    def steps(rows: int, count: int) -> dict[str, float]:
        if rows not in batches:
            batches[rows] = batch_of(shape, rows)
        batch = batches[rows]
        for _ in range(count):
            made[0] += 1
            part = task.supervise(MicroBatch(batch=batch, keys=tuple(made[0] * 1000 + row for row in range(rows))))
            result = task.loss(part, total_denominators([part]))
            result.loss.backward()
            norm = optimizer.sum_gradients()
            float(result.loss.detach())
            optimizer.step(1e-4, norm)
        return {}

    return steps
