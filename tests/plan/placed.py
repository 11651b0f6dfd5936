"""A tiny target with a benchmark in a place of its own, and what plans about it say."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import InputError, StoreError
from deepspec.plan.checks import examine
from flows.choices import Choices, choose_site
from infra.known import known
from infra.site import Site

SMALL = (
    "train.global_batch=2", "train.draft.block_size=7", "evaluate.max_new_tokens=32", "benchmark.max_new_tokens=32"
)  # fmt: skip


def questions(place: Path, *lengths: int) -> None:
    text = "".join(json.dumps({"turns": ["x" * length]}) + "\n" for length in lengths)
    (place / "benchmarks" / "own.jsonl").write_text(text)


def choices(place: Path, *overrides: str, **changes: Any) -> Choices:
    told = {"target": str(place / "target"), "dataset": "demo", "benchmarks_dir": str(place / "benchmarks")}
    return Choices(**{**told, "overrides": (*SMALL, *overrides), **changes})


def site(place: Path, **placed: Any) -> Site:
    return choose_site(str(place / "store"), **placed)


def told(place: Path, *overrides: str, **changes: Any) -> tuple[str, ...]:
    return examine(known(choices(place, *overrides, **changes).plan, site(place)))


def refused(place: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises((InputError, StoreError)) as caught:
        told(place, *overrides, **changes)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FIELDS = {
    "cache.layers=[1,99]": "cannot capture layers [1, 99] of a target with 6 layers",
    "cache.layers=[2,1]": "wanted ascending ids",
    "cache.layers=[5]": "from -1 (embedding output) to 4",
    "train.mask_token_id=999999": "mask token 999999 is outside the embedding, which has ids 0 to 263",
    "train.mask_token_id=65": "mask_token_id 65 is",
    "train.mask_token_id=257": "which every conversation contains",
    "train.draft.draft_vocab_size=99999": "draft_vocab_size 99999 is not in 1 … 264",
    "train.draft.window=513": "window 513 is larger than the context: the target reads 512 positions",
    "train.continue_from=abcdef": "draft/abcdef is not published",
    "train.warm_start=abcdef": "train.warm_start: ",
    "dataset.cache=abcdef": "nothing published in",
    "draft=abcdef": "nothing published in",
    "evaluate.max_new_tokens=600": "the target reads 512 tokens, evaluate.max_new_tokens is 600",
    "benchmark.max_new_tokens=504": "benchmark.max_new_tokens is 504 and 8 more are kept for a proposal: no prompt has",
    "cache.splits=[validation]": "there is nothing to train on",
    "train.source=nonsense": "train.source",
    "evaluate.slots=8": "evaluate.slots is 8: the draft proposes 7 tokens at a time; lower it",
    "benchmark.slots=8": "benchmark.slots is 8: the draft proposes 7 tokens at a time; lower it",
    "evaluate.temperatures=[]": "evaluate.temperatures: ",
    "evaluate.temperatures=[-1]": "evaluate.temperatures.0: ",
    "evaluate.confidence_temperatures=[0]": "evaluate.confidence_temperatures.0: ",
    "benchmark.batches=[]": "benchmark.batches: ",
    "benchmark.batches=[1,0]": "benchmark.batches.1: ",
    "benchmark.loads=[0]": "benchmark.loads.0: ",
}
"""Override -> what is said of it."""
