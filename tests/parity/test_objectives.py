"""Terms of the loss against golden numbers of speculators: rows, gradients, weights of slots, reductions."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepspec.algorithms.weights import by_slot, dpace
from deepspec.formats.recipe import Layout
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import Head, Rows
from deepspec.losses.terms import Terms
from tests.given import golden2
from tests.parity import theirs

EDGE = 1e-5
"""Their denominators are Σ m plus this."""
CASES = golden2.cases("losses", wanted=("batch.safetensors", "expected.json", "expected.safetensors"))


def terms_of(name: str) -> Terms:
    kind, _, sharpness = name.partition("_eta")
    return Terms(**theirs.TERMS[kind], **{"lk_sharpness": float(sharpness)} if sharpness else {})


def rows_of(case: Path, weights: Tensor | None = None) -> tuple[Rows, Head, Tensor]:
    """Return the rows of a case: with an identity for a head, states are logits."""
    batch = golden2.tensors(case, "batch.safetensors")
    count, vocab = batch["logits"].shape
    rows = Rows(
        hidden=batch["logits"].requires_grad_(), labels=None,
        weights=torch.ones(count) if weights is None else weights,
        target=batch["targets"], target_index=torch.arange(count),
    )  # fmt: skip
    return rows, Head(weight=torch.eye(vocab)), batch["loss_mask"].bool()


def losses_of(case: Path) -> list[str]:
    """Return the names of the terms that a case tells numbers of."""
    return sorted(name.removeprefix("row.") for name in golden2.tensors(case, "expected.safetensors") if "row." in name)


@pytest.mark.parametrize("case", CASES)
def test_rows_and_their_gradients(case: Path) -> None:
    wanted = golden2.tensors(case, "expected.safetensors")
    assert losses_of(case)
    for name in losses_of(case):
        rows, head, _ = rows_of(case)
        loss, _ = chunked_loss(rows, head, terms_of(name), chunk_rows=7)
        (grad,) = torch.autograd.grad(loss, rows.hidden)
        each = [chunked_loss(_one(rows, row), head, terms_of(name))[0].item() for row in range(len(grad))]
        torch.testing.assert_close(torch.tensor(each), wanted[f"row.{name}"], rtol=1e-5, atol=2e-6, msg=name)
        torch.testing.assert_close(grad.norm(dim=1), wanted[f"grad_norm.{name}"], rtol=1e-4, atol=2e-6, msg=name)
        first = wanted[f"grad_rows0to7.{name}"]
        torch.testing.assert_close(grad[: len(first)], first, rtol=1e-4, atol=2e-6, msg=name)


def _one(rows: Rows, row: int) -> Rows:
    return Rows(hidden=rows.hidden[[row]], labels=None, weights=torch.ones(1), target=rows.target[[row]],
                target_index=torch.tensor([0]))  # fmt: skip


def weights_of(case: Path, name: str, mask: Tensor, size: int) -> Tensor:
    """Return the weights of the slots that a weighting names."""
    kind, _, rest = name.partition("_")
    if kind == "none":
        return torch.ones(len(mask))
    if kind == "fixed":
        gamma, layout = rest.removeprefix("gamma").split("_")
        layouts: dict[str, Layout] = {"fillin": "fill_in", "shift": "shift"}
        return by_slot(size, float(gamma), layouts[layout]).repeat(len(mask) // size)
    rows, head, _ = rows_of(case)
    with torch.no_grad():
        cross = chunked_loss(rows, head, Terms(cross_entropy=1.0))[1].cross_entropy
    return dpace(cross.view(-1, size), mask.view(-1, size), float(rest.removeprefix("alpha"))).flatten()


@pytest.mark.parametrize("case", CASES)
def test_reductions_by_every_weighting(case: Path) -> None:
    told, wanted = golden2.expected(case), golden2.tensors(case, "expected.safetensors")
    _, _, mask = rows_of(case)
    assert told["totals"]
    for key, total in told["totals"].items():
        name, weighting = key.split("|")
        weights = weights_of(case, weighting, mask, told["block_size"])
        if weighting.startswith("dpace"):
            torch.testing.assert_close(weights, wanted[weighting.replace("dpace_", "dpace_weight.")])
        loss, norm = reduced(case, terms_of(name), weights)
        assert loss == pytest.approx(total["loss"], rel=1e-5), key
        assert norm == pytest.approx(total["grad_norm"], rel=1e-4), key


@pytest.mark.parametrize("case", CASES)
def test_compounds_of_terms(case: Path) -> None:
    told = golden2.expected(case)
    for key in (key for key in told if key.startswith("compound_")):
        parts = [part for part in key.removeprefix("compound_").split("_") if part[-1].isdigit()]
        terms = {}
        for part in parts:
            name = part.rstrip("0123456789.")
            ((term, factor),) = theirs.TERMS[name].items()
            terms[term] = factor * float(part.removeprefix(name))
        assert terms, key
        _, _, mask = rows_of(case)
        weights = weights_of(case, f"fixed_gamma{told['gammas'][0]:g}_fillin", mask, told["block_size"])
        assert reduced(case, Terms(**terms), weights)[0] == pytest.approx(told[key]["loss"], rel=1e-5), json.dumps(
            terms
        )


def reduced(case: Path, terms: Terms, weights: Tensor) -> tuple[float, float]:
    """Return loss and norm of the gradient by their reduction: Σ m·w·ℓ / (Σ m + ε)."""
    rows, head, mask = rows_of(case, weights)
    masked = Rows(hidden=rows.hidden, labels=None, weights=mask * weights / (mask.sum() + EDGE), target=rows.target,
                  target_index=rows.target_index)  # fmt: skip
    loss, _ = chunked_loss(masked, head, terms)
    (grad,) = torch.autograd.grad(loss, rows.hidden)
    return loss.item(), grad.norm().item()
