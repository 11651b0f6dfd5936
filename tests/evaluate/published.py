"""A tiny target on disk, a random draft for it as a published artifact, and two benchmark files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, Spec, TargetId, open_artifact
from deepspec.families import read
from deepspec.formats.benchmarks import Benchmark, resolve
from deepspec.formats.draft import adopt_target, save_draft
from deepspec.formats.draft_config import new_draft_config
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models import build_draft
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.store import Store
from deepspec.target.identity import identify
from deepspec.target.load import load_target
from tests.target import tiny

QUESTIONS = {
    "sums": [["2+2?"], ["what is 3+4?"], ["hello there"]],
    "talk": [["tell me", "and again"], ["hi", "why?"]],
}


@dataclass(frozen=True)
class Given:
    """What an evaluation is given."""

    store: Store
    draft: Artifact
    target: TargetId
    benchmarks: tuple[Benchmark, ...]
    placement: Placement


def given(root: Path, **recipe: Any) -> Given:
    """Publish a random draft for a tiny target."""
    folder = tiny.write_target(root / "target")
    target = load_target(folder)
    shape = read(json.loads((folder / "config.json").read_text()))
    wanted = DraftRecipe(**{"num_layers": 1, "block_size": 4, "markov_rank": 4, **recipe})
    mask = None if wanted.algorithm == "eagle3" else tiny.MASK
    config = new_draft_config(shape, wanted, (0, 2, 4), mask, Objective(ttt_length=4))
    model = build_draft(config)
    adopt_target(model, target.embed_weight, target.head_weight)
    store = Store(root / "store")
    out = Out(store, "draft", "a" * 32, {}, root / "scratch")
    out.folder.mkdir(parents=True)
    save_draft(model, out.folder)
    identity = identify(folder)
    ref = out.publish(Spec(), 1, {"target": identity.model_dump()})
    (root / "benchmarks").mkdir()
    for name, questions in QUESTIONS.items():
        text = "".join(json.dumps({"turns": turns}) + "\n" for turns in questions)
        (root / "benchmarks" / f"{name}.jsonl").write_text(text)
    found = resolve(root / "benchmarks")
    placement = Placement(
        scratch=root / "scratch", locations={**found.locations, identity.digest: str(folder)}, batch=3
    )
    return Given(store, open_artifact(store, ref, root / "scratch"), identity, found.benchmarks, placement)
