"""The whole chain as a library, without Prefect, on a tiny target."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.lines.rows import read_rows
from deepspec.placement import Placement
from deepspec.plan.presets import build_plan
from deepspec.plan.resolve import resolve
from deepspec.report import Report
from deepspec.specs import canonical_json
from deepspec.stages import STAGES, Work, materialize
from deepspec.store import Store
from deepspec.target.source import TargetFiles
from deepspec.target_cache.cache import TargetCache
from tests.given.heard import Heard
from tests.given.targets import tiny

QUESTIONS = ["2+2?", "what is 3+4?"]


def plan_parts(folder: Path) -> dict[str, Any]:
    """Return a plan that a tiny target does in seconds."""
    return {
        "target": {"name": "tiny", "model": str(folder / "target")},
        "dataset": {"answers": str(folder / "answers.jsonl"), "benchmarks_dir": str(folder / "benchmarks")},
        "prepare": {"near_duplicates": None},
        "cache": {"layers": [0, 2], "codec": "bf16", "dtype": "float32"},
        "train": {
            "draft": {"num_layers": 1, "block_size": 3, "markov_rank": 4},
            "objective": {"num_anchors": 4},
            "steps": 3,
            "global_batch": 2,
            "precision": "fp32",
            "bigram_samples": 0,
            "mask_token_id": tiny.MASK,
            "validation_samples": 2,
        },
        "evaluate": {
            "temperatures": [0.0], "max_new_tokens": 8, "calibration_samples": 2, "untrained_samples": 0,
            "dtype": "float32",
        },
        "benchmark": {
            "batches": [1], "samples": 1, "max_new_tokens": 4, "repeats": 1, "loads": [], "dtype": "float32",
        },
    }  # fmt: skip


def write_inputs(folder: Path, target: Callable[[Path], Path] = tiny.write_target) -> None:
    """Write target, answers and questions."""
    target(folder / "target")
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} and {n * n}."}]}
        for n in range(60)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "benchmarks").mkdir()
    lines = "".join(json.dumps({"turns": [text]}) + "\n" for text in QUESTIONS)
    (folder / "benchmarks" / "sums.jsonl").write_text(lines)


def run_chain(
    folder: Path,
    device: str = "cpu",
    report: Report | None = None,
    *,
    target: Callable[[Path], Path] = tiny.write_target,
    parts: Callable[[Path], dict[str, Any]] = plan_parts,
    last: str | None = None,
    **train: Any,
) -> dict[str, Artifact]:
    """Run every stage of the table in its order, models on a device; return the artifacts by stage.

    Args:
        folder: for everything; what an interrupted run left there is taken up.
        device: of target and draft.
        report: what is told; None: it is heard and forgotten.
        target: what writes it into a folder.
        parts: the plan, of a folder.
        last: the stage that ends it; None: the table's last.
        train: of the train stage, beside those parts.
    """
    torch.set_num_threads(1)
    if not (folder / "answers.jsonl").exists():
        write_inputs(folder, target)
    files, told = TargetFiles(folder=folder / "target", gguf=None), parts(folder)
    resolved = resolve(build_plan([{**told, "train": told["train"] | train}]), files, folder / "hashes.json", "any")
    store, scratch = Store(folder / "store"), folder / "scratch"
    placement = Placement(scratch=scratch, threads=1, device=device, locations=resolved.locations)
    refs: dict[str, ArtifactRef] = {}
    names = list(STAGES)
    stages = {name: STAGES[name] for name in names[: names.index(last or names[-1]) + 1]}
    for name, stage in stages.items():
        work = Work(
            stage=stage,
            spec=resolved.specs[name],
            inputs=refs,
            store=store,
            placement=placement,
            report=report or Heard(),
        )
        ref = materialize(work)
        assert materialize(work) == ref
        refs[stage.kind] = ref
    return {name: open_artifact(store, refs[stage.kind], scratch) for name, stage in stages.items()}


def told(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """Return what each stage made, as short as it can be held against another machine's: numbers are rounded."""
    cache = TargetCache(artifacts["cache"], artifacts["cache"].store.local_path("scratch") or Path())
    records = [cache.record(number) for number in cache.numbers("train")]
    states = torch.cat([record.hidden.float() for record in records])
    metrics = artifacts["train"].read_bytes("metrics.jsonl").decode().splitlines()
    scores = json.loads(artifacts["evaluate"].read_bytes("scores.json"))
    return {
        "prepare": digest(_rows(artifacts["prepare"])),
        "regenerate": digest(_rows(artifacts["regenerate"])),
        "cache": {
            "tokens": digest([[r.sample_id, r.input_ids.tolist(), r.loss_mask.tolist()] for r in records]),
            "mean size of states": round(float(states.abs().mean()), 3),
        },
        "train": [round(row["loss"], 3) for row in map(json.loads, metrics) if row["split"] == "train"],
        "export": sorted(artifacts["export"].names()),
        "evaluate": {
            "rounds": scores["overall"]["0.0"]["rounds"],
            "accepted length": round(scores["overall"]["0.0"]["accepted_length"]["value"], 3),
        },
        "benchmark": sorted(json.loads(artifacts["benchmark"].read_bytes("speed.json"))),
        "release": sorted(artifacts["release"].names()),
    }


def digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def _rows(artifact: Artifact) -> list[Any]:
    names = [name for name in artifact.names() if name.endswith(".jsonl.zst")]
    return [row for name in names for _, row in read_rows(artifact.path(name))]
