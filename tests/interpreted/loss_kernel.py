"""The kernel of the loss against float64, from the same inputs: shapes, ties, infinities, softcap, golden cases.

    TRITON_INTERPRET=1 python -m pytest -s tests/interpreted/loss_kernel.py    # -s prints the table of errors
    python -m pytest -s tests/interpreted/loss_kernel.py                       # compiled, where there is a GPU

The interpreter computes in fp32 as the compiled kernel does, but in numpy, and cuts where that one rounds to bf16.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import Head, RowLosses, Rows
from deepspec.losses.terms import Terms
from deepspec.losses.triton_chunks import TritonChunks
from deepspec.records.batch import on_device
from tests.given import golden
from tests.given import golden_training as parity
from tests.given.losses import ALL, TERMS, draw_rows, formulas, leaves, plain
from tests.given.some import some

LOSS, GRADIENT = 1e-5, {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest relative error of the loss, and of the norm of a gradient's error, by the weights' dtype."""
TILE = 64
DEVICE = "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"
RUNS = pytest.mark.skipif(
    DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
    reason="nothing runs a kernel here: there is no GPU, and TRITON_INTERPRET=1 was not asked for",
)

pytestmark = [
    RUNS,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]  # numpy tells of 0·∞, which a select leaves out


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.losses.chunked.kernel_of", lambda device: "triton")
    monkeypatch.setattr("deepspec.models.products._cpu_multiplies_bf16", lambda: False)  # fp32 sums, as on CUDA
    tiles_of(monkeypatch, TILE)


def tiles_of(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr("deepspec.losses.triton_chunks.TILE", tokens)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Logits of a draft and of a target, of which rows share positions."""

    draft: torch.Tensor
    target: torch.Tensor
    index: torch.Tensor
    labels: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    terms: Terms = ALL

    def measured(self, *, dtype: torch.dtype = torch.float32, most: int = 100) -> tuple[Tensor, ...]:
        """Return what the kernel measures, `(5 or 9, N)`, and its gradients of logits and, if there is one, bias."""
        num_rows, vocab = self.draft.shape
        like: dict[str, Any] = {"dtype": dtype, "device": DEVICE}
        biased = self.bias is not None
        rows = Rows(
            hidden=torch.zeros(num_rows, 1, **like), labels=self.labels.to(DEVICE), weights=torch.ones(num_rows),
            target=torch.zeros(len(self.target), 1, **like), target_index=self.index.to(DEVICE),
            on_host=self.index.numpy(), markov=torch.zeros(num_rows, 1, **like) if biased else None,
            markov_weight=torch.zeros(vocab, 1, **like) if biased else None,
        )  # fmt: skip
        head = Head(weight=torch.zeros(vocab, 1, **like), softcap=self.softcap)
        chunks = _Given(rows, head, self.terms, with_target=True, most=most)
        chunks.case = self
        outer, inner = torch.empty(self.draft.shape), torch.empty(self.draft.shape)
        for span, positions in chunks.spans:
            found = chunks._chunk(span, positions)
            outer[span], inner[span] = found, chunks._uncap(found)
        return chunks.measured.cpu(), inner, *[outer] * biased

    def exact(self) -> tuple[Tensor, ...]:
        """Return the same in float64, by autograd."""
        raw = self.draft.double().requires_grad_()
        bias = (torch.zeros_like(raw) if self.bias is None else self.bias.double()).detach().requires_grad_()
        log_q = (self._capped(raw) + bias).log_softmax(-1)
        log_p = self._capped(self.target.double()).log_softmax(-1)[self.index]
        best = self.target.argmax(-1)[self.index]
        per_row, (*first, kept) = formulas(log_q, log_p, self.labels, self.terms)
        correct = log_q.gather(1, best[:, None])[:, 0] == log_q.amax(-1)
        measured = torch.stack([*first[:4], correct.double(), *[*first[4:], kept] * self.terms.divergent])
        loss = per_row.sum()
        inner, outer = torch.autograd.grad(loss, (raw, bias))
        return measured.detach(), inner, *[outer] * (self.bias is not None)

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _Given(TritonChunks):
    """Chunks whose logits are a case's, not made by products."""

    case: Case

    def _take_products(self, span: slice, positions: slice) -> None:
        size, case = span.stop - span.start, self.case
        self.logits[:size] = case.draft[span]
        self.target[: positions.stop - positions.start] = case.target[positions]
        if case.bias is not None and case.softcap is not None:
            self.bias[:size] = case.bias[span]
        elif case.bias is not None:
            self.logits[:size] += case.bias[span].to(DEVICE)


def drawn(num_rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0, **changes: Any) -> Case:
    """Return a case of normal logits; about half of the rows share a position with the row before."""
    generator = torch.Generator().manual_seed(seed)
    index = (torch.rand(num_rows, generator=generator) < 0.5).long()
    index[0] = 0
    index = index.cumsum(0)
    case = Case(
        draft=torch.randn(num_rows, vocab, generator=generator) * scale,
        target=torch.randn(int(index[-1]) + 1, vocab, generator=generator) * scale,
        index=index,
        labels=torch.randint(0, vocab, (num_rows,), generator=generator),
    )
    return replace(case, **changes)


def off(found: Tensor, wanted: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖; a norm below 0.01 counts as 0.01: rounding is left."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=0.01))


def errors(case: Case, dtype: torch.dtype = torch.float32, most: int = 100) -> tuple[float, ...]:
    """Return the largest relative error of a measurement, and the errors of the gradients."""
    (measured, *grads), (exact, *exact_grads) = case.measured(dtype=dtype, most=most), case.exact()
    torch.testing.assert_close(measured.double(), exact, rtol=LOSS, atol=2e-6)
    apart = ((measured.double() - exact).abs() / exact.abs().clamp(min=1e-3))[exact.isfinite()]
    return float(apart.max()), *(off(grad, wanted) for grad, wanted in zip(grads, exact_grads, strict=True))


def tell(name: str, dtype: torch.dtype, found: str, gradients: Sequence[float]) -> None:
    """Print a row of the table of errors."""
    print(f"\n{name:28} {dtype!s:15} {found}, gradients {' '.join(f'{error:.1e}' for error in gradients)}")


def one_hot(case: Case) -> Case:
    """Return the case with a target that is certain: one logit, the others so low that their probability is 0."""
    certain = torch.full_like(case.target, -1e30)
    certain[torch.arange(len(certain)), case.labels[: len(certain)]] = 5.0
    return replace(case, target=certain)


def tied(case: Case) -> Case:
    """Return the case with equal largest logits in every row of both."""
    draft, target = case.draft.clone(), case.target.clone()
    draft[:, [1, -1]], target[:, [1, -2]] = 9.0, 9.0
    return replace(case, draft=draft, target=target)


def masked(case: Case, low: float) -> Case:
    """Return the case with a third of the draft's and of the target's logits at a very low value, labels aside."""
    generator = torch.Generator().manual_seed(1)
    draft_low = torch.rand(case.draft.shape, generator=generator) < 0.3
    draft_low.scatter_(1, case.labels[:, None], False)
    target_low = torch.rand(case.target.shape, generator=generator) < 0.3
    target_low |= draft_low[torch.searchsorted(case.index, torch.arange(len(case.target)))]  # p = 0 where q = 0 is
    both = target_low[case.index] & draft_low
    return replace(case, draft=case.draft.masked_fill(both, low), target=case.target.masked_fill(target_low, low))


EVERY = TERMS["every term"]
BOUNDED = replace(EVERY, reverse_kl=0.0)
"""Without the divergence that is infinite where p is 0 and q is not."""
BIAS = torch.randn(3, 100, generator=torch.Generator().manual_seed(3))
CASES = {
    "one row": drawn(1, 100),
    "vocabulary below a tile": drawn(3, 7),
    "vocabulary of one token": drawn(2, 1),
    "vocabulary of whole tiles": drawn(2, 2 * TILE),
    "one beyond whole tiles": drawn(2, 2 * TILE + 1),
    "equal largest logits": tied(drawn(3, 100)),
    "one-hot targets": one_hot(drawn(3, 100)),
    "very low logits": masked(drawn(3, 100), -1e30),
    "logits of −∞": masked(drawn(3, 100), float("-inf")),
    "far from 0": drawn(3, 100, draft=BIAS + 80),
    "softcap": drawn(3, 100, softcap=5.0, scale=8.0),
    "Markov bias": drawn(3, 100, bias=BIAS),
    "softcap and Markov bias": drawn(3, 100, softcap=5.0, scale=8.0, bias=BIAS),
    "every term": drawn(3, 100, terms=EVERY),
    "every term, very low logits": replace(masked(drawn(3, 100), -1e30), terms=BOUNDED),
    "every term, softcap and Markov bias": drawn(3, 100, softcap=5.0, scale=8.0, bias=BIAS, terms=EVERY),
    "every term, far apart": drawn(3, 100, scale=40.0, terms=EVERY),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*itertools.product(CASES, [torch.float32]), *itertools.product(["softcap and Markov bias"], [torch.bfloat16])],
)
def test_a_row_is_measured_and_its_gradient_taken_as_in_float64(name: str, dtype: torch.dtype) -> None:
    measured, *gradients = errors(CASES[name], dtype, most=2)
    tell(name, dtype, f"measured {measured:.1e}", gradients)
    assert max(gradients) <= GRADIENT[dtype]


def test_a_vocabulary_of_262144(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_of(monkeypatch, 4096)
    measured, *gradients = errors(drawn(2, 262_144), most=1)
    tell("V = 262,144", torch.float32, f"measured {measured:.1e}", gradients)
    assert max(gradients) <= GRADIENT[torch.float32]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 70), st.sampled_from([16, 32, 64]), st.integers(1, 5),
    st.sampled_from(sorted(TERMS)), st.sampled_from([None, 2.0]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_whatever_the_shapes(
    num_rows: int, vocab: int, tile: int, most: int, terms: str, softcap: float | None, biased: bool, seed: int
) -> None:
    bias = torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) if biased else None
    case = drawn(num_rows, vocab, seed=seed, terms=TERMS[terms], softcap=softcap, bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        tiles_of(patch, tile)
        assert max(errors(case, most=most)[1:]) <= GRADIENT[torch.float32]


def test_a_draft_that_says_what_the_target_says_is_left_alone() -> None:
    """q = p to the bit: nothing is accepted less, and total variation pulls nowhere."""
    case = drawn(3, 100, terms=Terms(total_variation=1.0, soft_cross_entropy=1.0))
    (_, distance, _, acceptance, correct), inner = replace(case, draft=case.target[case.index]).measured()
    assert not distance.any()
    assert not inner.any()
    torch.testing.assert_close(acceptance, torch.ones(3))
    assert correct.all()


def test_a_target_that_is_not_a_number_is_seen() -> None:
    case = drawn(2, 40, terms=Terms(soft_cross_entropy=1.0))
    case.target[0, 3] = float("nan")
    measured, inner = case.measured()
    assert measured[1:3, 0].isnan().all()
    assert inner[0].isnan().any()
    assert measured[:, case.index > 0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "softcap", "markov"), [("dspark", None, True), ("dspark", 2.5, True), ("dflash", None, False),
                                    ("eagle3", 2.5, False)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
def test_loss_and_gradients_of_states_and_weights(
    name: str, softcap: float | None, markov: bool, dtype: torch.dtype
) -> None:
    """From the same rounded inputs: what differs is the arithmetic between them and the result."""
    rows, weight = draw_rows(num_rows=6, dtype=dtype, markov=markov, vocab=40)
    wide = Rows(**{field: _double(getattr(rows, field)) for field in Rows.__slots__})
    wanted, exact = plain(wide, Head(weight=weight.double(), softcap=softcap), TERMS[name])
    exact_grads = torch.autograd.grad(wanted, leaves(wide))
    loss, measured = loss_of(rows, Head(weight=weight, softcap=softcap), TERMS[name], chunk_rows=4)
    grads = torch.autograd.grad(loss, leaves(rows))
    apart = [off(grad, value) for grad, value in zip(grads, exact_grads, strict=True)]
    error = abs(loss.item() / wanted.item() - 1)
    tell(f"{name}{', softcap' if softcap else ''}{', Markov' if markov else ''}", dtype, f"loss {error:.1e}", apart)
    assert error <= LOSS
    assert max(apart) <= GRADIENT[dtype]
    for got, value in zip((measured.cross_entropy, measured.acceptance), (exact[0], exact[3]), strict=True):
        torch.testing.assert_close(got.cpu().double(), value.detach(), rtol=1e-5, atol=1e-6)


def loss_of(rows: Rows, head: Head, terms: Terms, **options: Any) -> tuple[Tensor, RowLosses]:
    """Return the loss and what is measured of rows in host memory, computed on the device; gradients find back."""
    moved = replace(on_device(rows, DEVICE), on_host=rows.target_index.numpy())
    loss, measured = chunked_loss(moved, on_device(head, DEVICE), terms, **options)
    return loss.cpu(), measured


def _double(tensor: Any) -> Any:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def test_a_reduced_vocabulary_is_a_head_of_fewer_rows() -> None:
    """The head's rows are chosen before: target and draft are distributions over the same tokens."""
    rows, weight = draw_rows(num_rows=6, dtype=torch.float32, vocab=40)
    kept = torch.arange(0, 40, 3)
    fewer = replace(rows, labels=some(rows.labels) % len(kept), markov_weight=some(rows.markov_weight)[kept].detach())
    wanted, _ = plain(fewer, Head(weight=weight[kept]), ALL)
    torch.testing.assert_close(loss_of(fewer, Head(weight=weight[kept]), ALL)[0], wanted, rtol=LOSS, atol=0)


@pytest.mark.parametrize("softcap", [None, 2.5])
def test_a_bias_of_the_head_is_there_before_the_kernel_reads(softcap: float | None) -> None:
    rows, weight = draw_rows(num_rows=6, dtype=torch.float32, vocab=40)
    head = Head(weight=weight, bias=torch.linspace(-2, 2, 40), softcap=softcap)
    wanted, exact = plain(rows, head, ALL)
    loss, measured = loss_of(rows, head, ALL, chunk_rows=4)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(measured.acceptance.cpu(), exact[3].detach(), rtol=1e-5, atol=1e-6)
    for got, value in zip(*(torch.autograd.grad(each, leaves(rows)) for each in (loss, wanted)), strict=True):
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-6)


def test_without_a_target_only_cross_entropy_is_measured() -> None:
    rows, weight = draw_rows(num_rows=6, dtype=torch.float32)
    loss, measured = loss_of(rows, Head(weight=weight), TERMS["dflash"], measure=False, chunk_rows=4)
    wanted, exact = plain(rows, Head(weight=weight), TERMS["dflash"])
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(measured.cross_entropy.cpu(), exact[0].detach())
    assert not measured.acceptance.any()
    for got, value in zip(*(torch.autograd.grad(each, leaves(rows)[:1]) for each in (loss, wanted)), strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-7)


def test_without_labels_the_targets_most_likely_token_is_the_label() -> None:
    rows, weight = draw_rows(num_rows=6, dtype=torch.float32, markov=False)
    best = (rows.target @ weight.T).argmax(-1)[rows.target_index]
    loss, measured = loss_of(replace(rows, labels=None), Head(weight=weight), ALL, chunk_rows=4, candidates=3)
    wanted, _ = plain(replace(rows, labels=best), Head(weight=weight), ALL)
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(some(measured.labels).cpu(), best)
    logits = (rows.hidden @ weight.T).detach()
    assert torch.equal(some(measured.candidates).cpu(), logits.argsort(-1, descending=True)[:, :3])


def test_without_autograd_no_gradient_is_written() -> None:
    rows, weight = draw_rows(num_rows=6, dtype=torch.float32)
    with torch.no_grad():
        loss, _ = loss_of(rows, Head(weight=weight), ALL)
    torch.testing.assert_close(loss, plain(rows, Head(weight=weight), ALL)[0].detach())


def plainest(cases: list[Any]) -> list[Any]:
    """Return the cases, all but the one of fewest parameters for `make soak`: to interpret one takes seconds."""
    least, *others = sorted(cases, key=lambda case: (size_of(case.values[0]), case.id))
    return [least, *(pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.soak]) for case in others)]


def size_of(case: Path | None) -> int:
    return 0 if case is None else (case / "draft" / "model.safetensors").stat().st_size


ON_HOST = pytest.mark.skipif(DEVICE == "cuda", reason="golden cases lie in host memory here; tests/cuda has them")


@ON_HOST
@pytest.mark.parametrize("case", plainest(parity.BLOCK_CASES))
def test_golden_blocks(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_golden(case, monkeypatch, *parity.block_setting(case))


@ON_HOST
@pytest.mark.parametrize("case", plainest(parity.EAGLE_CASES))
def test_golden_steps(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_golden(case, monkeypatch, *parity.eagle_setting(case))


def check_golden(case: Path, monkeypatch: pytest.MonkeyPatch, *setting: Any) -> None:
    """Compare loss and gradients of a training case, in one pass."""
    tiles_of(monkeypatch, 512)
    assert parity.check_gradients(case, *setting).loss.item() == pytest.approx(golden.expected(case)["loss"], rel=LOSS)
