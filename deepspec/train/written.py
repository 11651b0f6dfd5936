"""What a run leaves: the draft with its metrics and its curve, and what the manifest tells."""

import json
from typing import Any

from deepspec.checkpoint.draft import save_draft
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.start.previous import STATE
from deepspec.steps.checkpoint import write_tensors
from deepspec.target_cache.cache import TargetCache
from deepspec.train.loop import Loop
from deepspec.train.narrator import Narrator
from deepspec.watch.meter import peak_memory

METRICS = "metrics.jsonl"
CURVE = "learning_curve.png"


def write_draft(loop: Loop, out: Out, report: Report) -> None:
    """Write the draft, its metrics, its curve, and the state from which training can be continued."""
    out.folder.mkdir(parents=True, exist_ok=True)
    save_draft(loop.task.model, out.folder)
    out.file(METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in loop.progress.rows))
    narrator = Narrator(report)
    out.file(CURVE).write_bytes(narrator.draw(loop))
    narrator.end(loop)
    write_tensors(loop.optimizer.state(), out.file(STATE))


def counts_of(loop: Loop, cache: TargetCache, kept: int) -> dict[str, Any]:
    """Return what the manifest tells of the run; `kept` is the step whose weights became the draft."""
    looks = loop.progress.looks()
    return {
        "target": cache.facts.target.model_dump(),
        "layers": list(cache.facts.layers),
        "algorithm": loop.task.config.algorithm,
        "parameters": loop.optimizer.size,
        "steps": loop.progress.step,
        "samples": loop.progress.samples,
        "tokens": loop.progress.tokens,
        "quarantined": len(cache.quarantined),
        "skipped_steps": loop.guard.skipped,
        "spikes": loop.guard.spikes,
        "loss": loop.progress.last_loss(),
        "untrained": next((look for look in looks if look["step"] == 0), None),
        "kept_step": kept,
        "held_out": next((look for look in looks if look["step"] == kept), None),
        "seconds": round(loop.meter.training, 1),
        "step_cpu_seconds": loop.meter.step_cpu_seconds,
        "look_seconds": 0.0 if loop.validation is None else round(loop.validation.seconds, 1),
        "walk_seconds": 0.0 if loop.validation is None else round(loop.validation.walking, 1),
        "tokens_per_second": round(loop.meter.tokens_per_second, 1),
        "samples_per_second": round(loop.meter.samples_per_second, 3),
        "data_wait_share": round(loop.data_wait_share, 4),
        "kernel": loop.task.kernel,
        "memory_bytes": peak_memory(loop.task.device),
        "mfu": loop.meter.utilization,
    }
