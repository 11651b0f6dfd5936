"""Terms, rows and the plain formulas of the loss, on all positions × vocabulary at once."""

import math

import torch
from torch import Tensor

from deepspec.losses.rows import Head, Rows
from deepspec.losses.terms import Terms

ALL = Terms(cross_entropy=0.1, total_variation=0.9, soft_cross_entropy=0.5)
TERMS = {
    "dspark": Terms(cross_entropy=0.1, total_variation=0.9),
    "dflash": Terms(cross_entropy=1.0),
    "eagle3": Terms(soft_cross_entropy=1.0),
    "variation": Terms(total_variation=2.0),
    "both cross-entropies": Terms(cross_entropy=0.3, soft_cross_entropy=0.7),
    "all": ALL,
    "forward KL": Terms(forward_kl=0.6),
    "reverse KL": Terms(reverse_kl=0.7),
    "Jensen-Shannon": Terms(jensen_shannon=1.5),
    "log acceptance": Terms(log_acceptance=0.8),
    "LK hybrid": Terms(lk_hybrid=1.2, lk_sharpness=2.0),
    "every term": Terms(
        cross_entropy=0.1, total_variation=0.2, soft_cross_entropy=0.3, forward_kl=0.4, reverse_kl=0.5,
        jensen_shannon=0.6, log_acceptance=0.7, lk_hybrid=0.8,
    ),
}  # fmt: skip


def draw_rows(
    num_rows: int = 11,
    size: int = 6,
    rank: int = 3,
    vocab: int = 13,
    dtype: torch.dtype = torch.float64,
    markov: bool = True,
) -> tuple[Rows, Tensor]:
    """Return rows that share positions of the target, in float64 unless told otherwise, and a head's weight."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    index = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6])[:num_rows]
    rows = Rows(
        hidden=normal(num_rows, size).requires_grad_(),
        labels=torch.randint(0, vocab, (num_rows,), generator=generator),
        weights=torch.rand(num_rows, generator=generator, dtype=torch.float64).to(dtype),
        target=normal(7, size)[: int(index[-1]) + 1],
        target_index=index,
        markov=normal(num_rows, rank).requires_grad_() if markov else None,
        markov_weight=normal(vocab, rank).requires_grad_() if markov else None,
    )
    return rows, normal(vocab, size)


def plain(rows: Rows, head: Head, terms: Terms) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The formulas of the module, on all positions × vocabulary at once."""

    def capped(logits: Tensor) -> Tensor:
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)

    bias = 0.0 if head.bias is None else head.bias
    logits = capped(rows.hidden @ head.weight.T + bias)
    if rows.markov is not None and rows.markov_weight is not None:
        logits = logits + rows.markov @ rows.markov_weight.T
    target = capped(rows.target @ head.weight.T + bias)[rows.target_index]
    correct = (logits.argmax(-1) == target.argmax(-1)).to(logits.dtype)
    assert rows.labels is not None
    per_row, measured = formulas(logits.log_softmax(-1), target.log_softmax(-1), rows.labels, terms)
    return (rows.weights * per_row).sum(), (*measured[:4], correct, *measured[4:])


def formulas(log_q: Tensor, log_p: Tensor, labels: Tensor, terms: Terms) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the loss of each row, and what is measured of it, as terms.py writes them down."""
    q, p = log_q.exp(), log_p.exp()
    cross = -log_q.gather(1, labels[:, None])[:, 0]
    distance, kept = (q - p).abs().sum(-1), torch.minimum(q, p).sum(-1)
    soft = -torch.where(p == 0, 0.0, p * log_q).sum(-1)
    forward = soft + torch.where(p == 0, 0.0, p * log_p).sum(-1)
    reverse = torch.where(q == 0, 0.0, q * (log_q - log_p)).sum(-1)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    of_q, of_p = (torch.where(x == 0, 0.0, x * (log_x - log_m)).sum(-1) for x, log_x in ((q, log_q), (p, log_p)))
    shannon = (of_q + of_p) / 2
    mixed = torch.exp(-terms.lk_sharpness * kept.detach())
    parts = {
        "cross_entropy": cross, "total_variation": distance, "soft_cross_entropy": soft, "forward_kl": forward,
        "reverse_kl": reverse, "jensen_shannon": shannon, "log_acceptance": -kept.clamp(min=1e-5).log(),
        "lk_hybrid": mixed * forward + (1 - mixed) * (1 - kept),
    }  # fmt: skip
    factors = {name: getattr(terms, name) for name in parts}
    per_row = sum(factor * parts[name] for name, factor in factors.items() if factor)  # 0 times NaN is none of it
    return per_row, (cross, distance, soft, kept, forward, reverse, shannon, kept)


def leaves(rows: Rows) -> list[Tensor]:
    """Return what a loss of rows has gradients for."""
    return [tensor for tensor in (rows.hidden, rows.markov, rows.markov_weight) if tensor is not None]
