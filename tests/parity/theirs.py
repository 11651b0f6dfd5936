"""Drafts and batches of speculators' golden numbers, as ours."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deepspec.checkpoint.config import read_draft_config
from deepspec.checkpoint.draft import CONFIG, WEIGHTS
from deepspec.checkpoint.foreign import public_config, public_tensors
from deepspec.export.proof import draft_with
from deepspec.formats.recipe import Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.records.batch import Batch, Record, collate_rows, supervises
from tests.given import golden2

LAYERS = 100
"""Layers of a target: the cases do not tell."""
TERMS = {
    "ce": {"cross_entropy": 1.0}, "kl_div": {"forward_kl": 1.0}, "rkl": {"reverse_kl": 1.0},
    "jsd": {"jensen_shannon": 1.0}, "tv": {"total_variation": 0.5}, "nla": {"log_acceptance": 1.0},
    "lk_hybrid": {"lk_hybrid": 1.0},
}  # fmt: skip
"""Their names of terms, as ours: their total variation is half of ‖q − p‖₁."""


def read_draft(case: Path) -> BlockDraft | EagleDraft:
    """Return the draft of a case, read by the rules of the form of speculators; the target gives what it leaves out."""
    theirs, tensors = json.loads((case / "draft" / CONFIG).read_text()), load_file(case / "draft" / WEIGHTS)
    verifier = golden2.tensors(case, "verifier.safetensors")
    config, tensors = read_draft_config(public_config(theirs, LAYERS)), public_tensors(theirs, tensors)
    borrowed = {name: verifier[name] for name in ("embed_tokens.weight", "lm_head.weight") if name not in tensors}
    return draft_with(config, {**borrowed, **tensors}).train()


def read_batch(case: Path) -> Batch:
    """Return the packed row of a case; last states after the target's final norm."""
    tensors = golden2.tensors(case, "batch.safetensors")
    documents = tensors["document_ids"][0]
    places = torch.arange(len(documents))
    starts, ends = torch.zeros_like(documents), torch.zeros_like(documents)
    for document in documents[documents >= 0].unique():
        own = documents == document
        starts[own], ends[own] = places[own][0], places[own][-1] + 1
    return Batch(
        sample_ids=tuple(str(int(document)) for document in documents[documents >= 0].unique()),
        starts=starts[None], ends=ends[None], input_ids=tensors["input_ids"], loss_mask=tensors["loss_mask"].bool(),
        hidden=tensors["hidden_states"], last_hidden=normed(case, tensors["verifier_last_hidden_states"]),
    )  # fmt: skip


def read_documents(case: Path) -> Batch:
    """Return the whole documents of a case whose packed row is shifted, in one row of ours, and where each begins."""
    tensors = golden2.tensors(case, "batch.safetensors")
    count = len({name.split(".")[0] for name in tensors if name.startswith("doc") and "." in name})
    records = []
    for number in range(count):
        last = normed(case, tensors[f"doc{number}.verifier_last_hidden_states"])
        mask = tensors[f"doc{number}.loss_mask"].bool()
        records.append(Record(
            sample_id=str(number), input_ids=tensors[f"doc{number}.input_ids"], loss_mask=mask,
            hidden=tensors[f"doc{number}.hidden_states"], last_hidden=last[supervises(mask)],
        ))  # fmt: skip
    return collate_rows([records])


def shifted_rows(batch: Batch) -> Tensor:
    """Return the positions of ours that a shifted packed row holds, in its order: all but each document's last."""
    return torch.cat([torch.arange(start, end - 1) for _, start, end in batch.spans()])


def normed(case: Path, last_hidden: Tensor) -> Tensor:
    """Return last states after the target's final norm, as our caches hold them."""
    weight = golden2.tensors(case, "verifier.safetensors")["norm.weight"]
    eps = json.loads((case / "draft" / "config.json").read_text())["transformer_layer_config"]["rms_norm_eps"]
    return torch.nn.functional.rms_norm(last_hidden, weight.shape, weight, eps)


def objective_of(case: Path, **more: Any) -> Objective:
    """Return the objective that a case's call tells."""
    told = golden2.expected(case)["call_args"]
    named = json.loads(told["loss_fn"]) if told["loss_fn"].startswith("{") else {told["loss_fn"]: 1.0}
    terms = {"cross_entropy": 0.0, "total_variation": 0.0}
    for name, weight in named.items():
        ((term, factor),) = TERMS[name].items()
        terms[term] = factor * weight
    weighting = told.get("per_position_loss_weight")
    slots = {} if weighting is None else {
        "slot_weights": {"dpace": "dpace", "fixed-exp-decay": "decay"}[weighting],
        "dpace_alpha": told["dpace_alpha"], "slot_decay": told["gamma"],
    }  # fmt: skip
    return Objective(convention="speculators", **terms, **slots, **more)
