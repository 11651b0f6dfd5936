"""The chunked losses: numbers by hand, exact gradients, equality with the plain formula."""

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import Head, RowLosses, Rows
from deepspec.losses.terms import Terms
from deepspec.models import whole_head
from deepspec.models.products import MatrixProduct, TiledProduct, WideProduct, product_of
from deepspec.models.whole_head import Whole
from tests.given.losses import ALL, TERMS, draw_rows, leaves, plain
from tests.given.some import some

MEASURED = [each.name for each in fields(RowLosses)][:9]


def test_numbers_by_hand() -> None:
    """q = (½, ½), p = (0.9, 0.1), label 0: CE = ln 2, ‖q − p‖₁ = 0.8, Σ min = 0.6."""
    rows = Rows(
        hidden=torch.zeros(1, 1, requires_grad=True),
        labels=torch.tensor([0]),
        weights=torch.tensor([2.0]),
        target=torch.tensor([[1.0]]),
        target_index=torch.tensor([0]),
    )
    head = Head(weight=torch.tensor([[9.0], [1.0]]).log())
    loss, measured = chunked_loss(rows, head, Terms(cross_entropy=1.0, total_variation=0.5))
    torch.testing.assert_close(measured.cross_entropy, torch.tensor([2.0]).log())
    torch.testing.assert_close(measured.total_variation, torch.tensor([0.8]))
    torch.testing.assert_close(measured.acceptance, torch.tensor([0.6]))
    torch.testing.assert_close(loss, 2 * (torch.tensor(2.0).log() + 0.4))


@pytest.mark.parametrize(("name", "softcap", "markov"), list(itertools.product(TERMS, [None, 2.5], [True, False])))
def test_chunks_equal_the_plain_formula_and_its_gradient(name: str, softcap: float | None, markov: bool) -> None:
    rows, weight = draw_rows(dtype=torch.float32, markov=markov)
    head = Head(weight=weight, softcap=softcap)
    wanted, wanted_rows = plain(rows, head, TERMS[name])
    wanted_grads = torch.autograd.grad(wanted, leaves(rows))
    for chunk_rows in (1, 4, 100):
        loss, measured = chunked_loss(rows, head, TERMS[name], chunk_rows=chunk_rows)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
        told = [getattr(measured, name) for name in MEASURED]
        assert (None in told) == (not TERMS[name].divergent)
        for got, value in zip(filter(lambda field: field is not None, told), wanted_rows, strict=False):
            torch.testing.assert_close(got, value.detach(), rtol=1e-5, atol=1e-6)
        for got, value in zip(torch.autograd.grad(loss, leaves(rows)), wanted_grads, strict=True):
            loose = 10 if TERMS[name].divergent else 1  # 1 / a of a small a
            torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6 * loose)


@pytest.mark.parametrize(("softcap", "reduced"), list(itertools.product([None, 2.5], [True, False])))
def test_a_bias_of_the_head_is_one_more_size_of_states_that_is_always_one(softcap: float | None, reduced: bool) -> None:
    rows, weight = draw_rows(vocab=13)
    bias, known = (
        torch.linspace(-2, 2, 13, dtype=torch.float64),
        torch.arange(0, 13, 2) if reduced else torch.arange(13),
    )
    markov_weight = some(rows.markov_weight)[known].detach().requires_grad_()
    rows = replace(rows, labels=some(rows.labels) % len(known), markov_weight=markov_weight)

    def longer(states: Tensor) -> Tensor:
        return torch.cat([states, torch.ones_like(states[:, :1])], -1)

    whole = torch.cat([weight, bias[:, None]], -1)
    every = (
        (Whole(weight=weight, known=known, bias=bias), Whole(weight=whole, known=known)) if reduced else (None, None)
    )
    ours = Head(weight=weight[known], bias=bias[known], softcap=softcap, whole=every[0])
    theirs = Head(weight=whole[known], softcap=softcap, whole=every[1])
    wider = replace(rows, hidden=longer(rows.hidden), target=longer(rows.target))
    loss, found = chunked_loss(rows, ours, ALL, chunk_rows=4, candidates=2)
    wanted, told = chunked_loss(wider, theirs, ALL, chunk_rows=4, candidates=2)
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(some(found.candidates), some(told.candidates))
    torch.testing.assert_close(found.acceptance, told.acceptance)
    for got, value in zip(*(torch.autograd.grad(each, leaves(rows)) for each in (loss, wanted)), strict=True):
        torch.testing.assert_close(got, value)


def test_a_bias_of_the_head_by_hand() -> None:
    """Of states of 0 the bias says all: q = p = softmax(b) = (0.9, 0.1), label 1, CE = ln 10."""
    rows = Rows(
        hidden=torch.zeros(1, 1, requires_grad=True),
        labels=torch.tensor([1]),
        weights=torch.ones(1),
        target=torch.zeros(1, 1),
        target_index=torch.tensor([0]),
    )
    head = Head(weight=torch.ones(2, 1), bias=torch.tensor([9.0, 1.0]).log())
    _, measured = chunked_loss(rows, head, Terms(cross_entropy=1.0))
    torch.testing.assert_close(measured.cross_entropy, torch.tensor([10.0]).log())
    torch.testing.assert_close(measured.acceptance, torch.ones(1))


def test_divergences_by_hand() -> None:
    """q = (½, ½), p = (0.9, 0.1): a = 0.6, KL(p‖q) = 0.9·ln 1.8 + 0.1·ln 0.2, KL(q‖p) = ½·ln(1/1.8) + ½·ln 5.

    m = (0.7, 0.3), of which p and q are ½·(0.9·ln(9/7) + 0.1·ln ⅓ + ½·ln(5/7) + ½·ln(5/3)) away. λ = e^(−3·0.6).
    """
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    reverse = 0.5 * math.log(1 / 1.8) + 0.5 * math.log(5)
    shannon = (0.9 * math.log(9 / 7) + 0.1 * math.log(1 / 3) + 0.5 * math.log(5 / 7) + 0.5 * math.log(5 / 3)) / 2
    mixed = math.exp(-1.8)
    wanted = {
        "forward_kl": forward, "reverse_kl": reverse, "jensen_shannon": shannon, "log_acceptance": -math.log(0.6),
        "lk_hybrid": mixed * forward + (1 - mixed) * 0.4,
    }  # fmt: skip
    for name, value in wanted.items():
        rows = Rows(hidden=torch.zeros(1, 1), labels=torch.tensor([0]), weights=torch.ones(1),
                    target=torch.ones(1, 1), target_index=torch.tensor([0]))  # fmt: skip
        loss, _ = chunked_loss(rows, Head(weight=torch.tensor([[9.0], [1.0]]).log()), Terms(**{name: 1.0}))
        assert loss.item() == pytest.approx(value, rel=1e-5), name


def test_acceptance_below_the_least_moves_nothing() -> None:
    rows = Rows(hidden=torch.tensor([[-40.0]], requires_grad=True), labels=torch.tensor([0]), weights=torch.ones(1),
                target=torch.tensor([[40.0]]), target_index=torch.tensor([0]))  # fmt: skip
    loss, _ = chunked_loss(rows, Head(weight=torch.tensor([[1.0], [0.0]])), Terms(log_acceptance=1.0))
    assert loss.item() == pytest.approx(-math.log(1e-5))
    assert torch.autograd.grad(loss, rows.hidden)[0].item() == 0


@pytest.mark.parametrize("whole", [False, True])
def test_without_labels_the_targets_most_likely_token_is_the_label(whole: bool) -> None:
    rows, weight = draw_rows()
    best = (rows.target @ weight.T).argmax(-1)[rows.target_index]
    head = Head(weight=weight, whole=Whole(weight=weight, known=torch.arange(len(weight))) if whole else None)
    loss, measured = chunked_loss(replace(rows, labels=None), head, TERMS["dflash"], measure=False, chunk_rows=4)
    wanted, _ = chunked_loss(replace(rows, labels=best), head, TERMS["dflash"], measure=False)
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(some(measured.labels), best)


def test_candidates_are_the_most_likely_tokens_the_best_first() -> None:
    rows, weight = draw_rows()
    _, measured = chunked_loss(rows, Head(weight=weight), ALL, candidates=3, chunk_rows=4)
    logits = (rows.hidden @ weight.T + some(rows.markov) @ some(rows.markov_weight).T).detach()
    assert torch.equal(some(measured.candidates), logits.argsort(-1, descending=True)[:, :3])
    assert chunked_loss(rows, Head(weight=weight), ALL)[1].candidates is None


@pytest.mark.parametrize("name", [name for name, terms in TERMS.items() if not terms.lk_hybrid])
def test_gradients_are_exact(name: str) -> None:
    rows, weight = draw_rows(num_rows=5, vocab=7)
    head = Head(weight=weight, softcap=2.0)

    def loss(hidden: Tensor, markov: Tensor, markov_weight: Tensor) -> Tensor:
        changed = Rows(hidden=hidden, markov=markov, markov_weight=markov_weight, labels=rows.labels,
                       weights=rows.weights, target=rows.target, target_index=rows.target_index)  # fmt: skip
        return chunked_loss(changed, head, TERMS[name], chunk_rows=2)[0]

    assert gradcheck(loss, leaves(rows), eps=1e-7, atol=1e-5)


def test_target_is_left_out_where_nothing_needs_it() -> None:
    rows, weight = draw_rows()
    head = Head(weight=weight)
    loss, measured = chunked_loss(rows, head, TERMS["dflash"], measure=False)
    torch.testing.assert_close(loss, chunked_loss(rows, head, TERMS["dflash"])[0])
    assert measured.acceptance.count_nonzero() == 0


def test_no_gradients_are_made_without_autograd() -> None:
    rows, weight = draw_rows()
    with torch.no_grad():
        loss, _ = chunked_loss(rows, Head(weight=weight), ALL)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, chunked_loss(rows, Head(weight=weight), ALL)[0].detach())


def test_a_look_multiplies_for_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a look at held-out samples only logits are wanted: those of the draft, and those of the target."""
    rows, weight = draw_rows()
    called = list[str]()

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def product(*told: Any, **more: Any) -> Any:
            called.append(name)
            return real(*told, **more)

        return product

    for name in ("forward", "backward", "accumulate"):
        monkeypatch.setattr(MatrixProduct, name, noted(name, getattr(MatrixProduct, name)))
    with torch.no_grad():
        looked, told = chunked_loss(rows, Head(weight=weight), ALL)
    assert set(called) == {"forward"}
    called.clear()
    trained, wanted = chunked_loss(rows, Head(weight=weight), ALL)
    assert set(called) == {"forward", "backward", "accumulate"}
    assert torch.equal(looked, trained.detach())
    for name in MEASURED[:5]:
        assert torch.equal(getattr(told, name), getattr(wanted, name))


def reduced(target: list[float], draft: list[float], known: list[int]) -> list[tuple[Tensor, RowLosses]]:
    """Return what is measured of one row by a head that knows some of the target's tokens, with and without the rest.

    Args:
        target: what the target says, a chance for each of its tokens.
        draft: what the draft says of those that it knows.
        known: which these are.
    """
    whole, drafted = torch.tensor(target).log(), torch.tensor(draft).log()
    rows = Rows(
        hidden=torch.tensor([[0.0, 1.0]], requires_grad=True),
        labels=torch.tensor([0]),
        weights=torch.ones(1),
        target=torch.tensor([[1.0, 0.0]]),
        target_index=torch.tensor([0]),
    )
    weight = torch.stack([whole, torch.zeros(len(target)).index_put((torch.tensor(known),), drafted)], dim=1)
    every = Whole(weight=weight, known=torch.tensor(known))
    heads = (Head(weight=weight[known], whole=every), Head(weight=weight[known]))
    return [chunked_loss(rows, head, TERMS["dspark"]) for head in heads]


def test_acceptance_of_a_reduced_vocabulary_is_held_against_all_that_the_target_says() -> None:
    """p = (½, ¼, ¼), known are the first and the last: p becomes (⅔, ⅓) there, q = (0.6, 0.4).

    The target keeps min(½, 0.6) + min(¼, 0.4) = ¾ of what is drafted, not 0.6 + ⅓; the loss is that of (⅔, ⅓) in both.
    """
    (loss, found), (alone, upper) = reduced([0.5, 0.25, 0.25], [0.6, 0.4], [0, 2])
    torch.testing.assert_close(found.acceptance, torch.tensor([0.75]))
    torch.testing.assert_close(upper.acceptance, torch.tensor([0.6 + 1 / 3]))
    torch.testing.assert_close(found.total_variation, torch.tensor([2 / 15]))
    torch.testing.assert_close(found.soft_cross_entropy, upper.soft_cross_entropy)
    torch.testing.assert_close(loss, alone)
    assert found.correct == upper.correct == 1


def test_a_token_that_the_draft_does_not_know_is_never_the_right_guess() -> None:
    """The target says the second token, which the draft does not know: the best of the others is no match."""
    (_, found), (_, upper) = reduced([0.3, 0.6, 0.1], [0.7, 0.3], [0, 2])
    assert (found.correct.item(), upper.correct.item()) == (0, 1)
    torch.testing.assert_close(found.acceptance, torch.tensor([0.4]))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_whole_head_in_pieces_equals_the_plain_formula(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_head, "ROWS", 2)
    rows, weight = draw_rows(vocab=13)
    known = torch.tensor([0, 1, 4, 5, 6, 9, 12])
    few = replace(
        rows, labels=some(rows.labels) % 7, markov_weight=some(rows.markov_weight)[known].detach().requires_grad_()
    )
    head = Head(weight=weight[known], softcap=softcap, whole=Whole(weight=weight, known=known))
    loss, found = chunked_loss(few, head, ALL, chunk_rows=4)
    alone, _ = plain(few, Head(weight=weight[known], softcap=softcap), ALL)
    torch.testing.assert_close(loss, alone)

    def capped(logits: Tensor) -> Tensor:
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    every = capped(rows.target @ weight.T)[rows.target_index]
    q = (capped(few.hidden @ weight[known].T) + some(few.markov) @ some(few.markov_weight).T).softmax(-1)
    torch.testing.assert_close(found.acceptance, torch.minimum(q, every.softmax(-1)[:, known]).sum(-1))
    torch.testing.assert_close(found.correct, (known[q.argmax(-1)] == every.argmax(-1)).double())


def test_bf16_stays_close_to_fp32() -> None:
    rows, weight = draw_rows(dtype=torch.bfloat16)
    wide = Rows(**{name: _wide(getattr(rows, name)) for name in Rows.__slots__})
    wanted, _ = chunked_loss(wide, Head(weight=weight.float()), ALL)
    got, _ = chunked_loss(rows, Head(weight=weight), ALL)
    torch.testing.assert_close(got.float(), wanted, rtol=2e-2, atol=2e-2)
    for ours, exact in zip(
        torch.autograd.grad(got, leaves(rows)), torch.autograd.grad(wanted, leaves(wide)), strict=True
    ):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), exact, rtol=3e-2, atol=3e-2)


def _wide(tensor: Any) -> Any:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.detach().float().requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("tiled", [True, False])
def test_products_of_narrow_weights_agree_either_way(tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.models.products._cpu_multiplies_bf16", lambda: not tiled)
    monkeypatch.setattr("deepspec.models.products.TILE_ROWS", 5)
    check_product(TiledProduct if tiled else MatrixProduct, rtol=2e-2)


class _OnCuda(TorchDispatchMode):
    """Takes products into another dtype, which torch has for CUDA alone: operands as they are, sums in that dtype."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.mm.dtype:
            return args[0].to(args[2]) @ args[1].to(args[2])
        if func is torch.ops.aten.mm.dtype_out:
            return kwargs["out"].copy_(args[0].to(args[2]) @ args[1].to(args[2]))
        if func is torch.ops.aten.addmm.dtype_out:
            assert args[0] is kwargs["out"]  # nothing is copied before it is added to
            return kwargs["out"].addmm_(args[1].to(args[3]), args[2].to(args[3]))
        return func(*args, **kwargs)


def test_products_of_narrow_weights_on_cuda_are_not_rounded() -> None:
    with _OnCuda():  # type: ignore[no-untyped-call]
        check_product(WideProduct, rtol=1e-5)


def check_product(kind: Any, rtol: float) -> None:
    """Compare the four products of a narrow matrix with those of fp32."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 6, generator=generator).bfloat16()
    x, grad = torch.randn(4, 6, generator=generator).bfloat16(), torch.randn(4, 13, generator=generator)
    product, out, total = kind(weight), torch.ones(4, 13), torch.zeros(13, 6)
    assert kind is WideProduct or type(product_of(weight)) is kind
    product.forward(x, out)
    product.forward(x, out, add=True)
    product.accumulate(total, grad, x)
    torch.testing.assert_close(out, 2 * x.float() @ weight.float().T, rtol=rtol, atol=rtol)
    torch.testing.assert_close(product.backward(grad).float(), grad @ weight.float(), rtol=3e-2, atol=5e-2)
    torch.testing.assert_close(total, grad.T @ x.float(), rtol=3e-2, atol=5e-2)
