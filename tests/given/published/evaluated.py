"""A tiny target on disk, a random draft for it as a published artifact, and two benchmark files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.checkpoint.draft import adopt_target, save_draft
from deepspec.checkpoint.new import new_draft_config
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.families import read
from deepspec.formats.benchmarks import Benchmark, find_benchmarks
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.lines.rows import read_rows, write_rows
from deepspec.models.draft import build_draft
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.specs import Spec, TargetId
from deepspec.store import Store
from deepspec.target.identity import identify
from deepspec.target.load import load_target
from tests.given.drafts.recipes import sized
from tests.given.targets import tiny

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


def publish_better(store: Store, scores: ArtifactRef, address: str, scratch: Path) -> ArtifactRef:
    """Publish what scores would be had every proposal been accepted: a baseline that today's cannot hold."""
    real = open_artifact(store, scores, scratch)
    out = Out(store, "scores", address, real.manifest.inputs, scratch)
    for name in real.names():
        if not name.startswith("traces"):
            shutil.copyfile(real.path(name), out.file(name))
            continue
        rows = [row for _, row in read_rows(real.path(name))]
        for row in rows:
            row["rounds"] = [[room, proposed, proposed, False, told] for room, proposed, _, _, told in row["rounds"]]
        write_rows(out.file(name), rows)
    return out.publish(EvaluateSpec.model_validate(real.manifest.spec), real.manifest.version, real.manifest.counts)


def given(root: Path, questions: Mapping[str, list[list[str]]] = QUESTIONS, **recipe: Any) -> Given:
    """Publish a random draft for a tiny target, and write benchmarks: name -> turns of each question."""
    folder = tiny.write_target(root / "target")
    target = load_target(folder)
    shape = read(json.loads((folder / "config.json").read_text()))
    wanted = DraftRecipe(**sized(recipe.get("algorithm", "dspark"), num_layers=1, block_size=4, markov_rank=4) | recipe)
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
    for name, asked in questions.items():
        text = "".join(json.dumps({"turns": turns}) + "\n" for turns in asked)
        (root / "benchmarks" / f"{name}.jsonl").write_text(text)
    found = find_benchmarks(root / "benchmarks")
    placement = Placement(
        scratch=root / "scratch", locations={**found.locations, identity.digest: str(folder)}, batch=3
    )
    return Given(store, open_artifact(store, ref, root / "scratch"), identity, found.benchmarks, placement)
