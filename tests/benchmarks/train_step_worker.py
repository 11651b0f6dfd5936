"""Makes one training step of ours each time a line comes in; the shapes are those of the peers' script."""

import json
import sys
import time
from pathlib import Path
from typing import cast

import torch

from deepspec.algorithms import ALGORITHMS
from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.formats.recipe import TRAITS, AlgorithmName, DraftRecipe, Objective
from deepspec.models.draft import BlockDraft, EagleDraft, build_draft
from deepspec.records.batch import Batch
from deepspec.start.initial import initialize

LAYERS = (1, 7, 13, 19, 26)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resident_mib() -> float:
    """Return what the process holds now."""
    return _status("VmRSS")


def peak_mib() -> float:
    """Return the most that the process held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew: what making the model took is not looked at."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def setting(
    algorithm: AlgorithmName, dtype: torch.dtype, *, large: bool
) -> tuple[BlockDraft | EagleDraft, Objective, Batch]:
    """Return draft, objective and batch."""
    vocab, length, anchors = (151936, 4096, 512) if large else (49152, 512, 64)
    shape = read({
        "model_type": "qwen3", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": vocab, "num_hidden_layers": 30,
        "max_position_embeddings": 4096, "rope_theta": 1e5})  # fmt: skip
    objective = Objective(num_anchors=anchors, ttt_length=3)
    traits = TRAITS[algorithm]
    mask, layers = vocab - 1 if traits.masked else None, (29,) if traits.shipped else LAYERS
    model = build_draft(new_draft_config(shape, DraftRecipe(algorithm=algorithm), layers, mask, objective))
    initialize(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    loss_mask = torch.ones(1, length, dtype=torch.bool)
    loss_mask[:, :32] = False
    batch = Batch(
        sample_ids=("one",),
        starts=torch.zeros(1, length, dtype=torch.int64),
        ends=torch.full((1, length), length),
        input_ids=torch.randint(0, vocab - 10, (1, length), generator=generator),
        loss_mask=loss_mask,
        hidden=torch.randn(1, length, len(layers) * 576, generator=generator).to(dtype),
        last_hidden=torch.randn(1, length, 576, generator=generator).to(dtype),
    )
    return model.to(dtype).train(), objective, batch


def main(name: str, dtype_name: str, *flags: str) -> None:
    """Step for as long as lines come in."""
    algorithm_name = cast(AlgorithmName, name)
    torch.set_num_threads(1)
    model, objective, batch = setting(algorithm_name, DTYPES[dtype_name], large="--large" in flags)
    algorithm = ALGORITHMS[algorithm_name]
    parameters = [parameter for _, parameter in model.trainable()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
    forget_peak()
    before, peak, number = resident_mib(), 0.0, 0
    measure = "--measure" in flags or algorithm_name != "dflash"
    while True:
        start, busy = time.perf_counter(), time.process_time()
        supervision = algorithm.supervise(model.config, objective, batch, [number])
        algorithm.loss(model, batch, supervision, supervision.denominators, measure=measure).loss.backward()
        peak = peak or peak_mib() - before
        if "--large" not in flags:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        told = {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - busy,
            "peak_mib": peak,
            "state_mib": peak_mib() - (0 if "--large" in flags else before),
        }
        print("STEP " + json.dumps(told), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
