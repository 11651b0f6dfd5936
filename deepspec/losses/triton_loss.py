"""What the loss measures of a chunk's logits, and their gradient, in Triton.

One program has one row and goes over its vocabulary in tiles, two or three times:

1. the normalizer log Σ exp z, the largest logit, and the logits of the label and of the target's best token;
2. the row's measurements, and ⟨u, q⟩, where u = ∂ℓ/∂q is the slope of the terms whose gradient is q⊙(u − ⟨u, q⟩);
3. the gradient. Without such a term it needs no ⟨u, q⟩ and is written in the second pass.

The target's normalizers are taken once per distinct position. Within a pass each lane keeps sums of its own, and the
lanes are added up at its end: every row is summed in one fixed order, so equal inputs give equal bits. Passes go to and
fro, because what was read last is still in the L2 cache. What it costs, and why it is so: docs/adr/0009.

**A further term** is a summand of `_slope` and a factor; where it is measured, a sum in `_sweep`, too. The reverse
Kullback-Leibler divergence has u = log q − log p, the Jensen-Shannon divergence u = ½·log(2q / (p + q)). A term that
scales another by what is measured of the row (−log acceptance is the total variation over twice the acceptance) scales
u and ⟨u, q⟩ between the passes: with such terms (DIVERGENT) the gradient always has a pass of its own. Weights of rows
are not seen here: they multiply what the products make.

Shapes: logits `(rows, V)`, contiguous. CAPPED: z = softcap·tanh(raw / softcap); BIASED: the Markov bias lies beside the
logits, because it is added behind the softcap. Elsewhere the logits hold it.
"""

import triton
import triton.language as tl

TILE = 4096
"""Tokens of a tile: with 16 warps 8 logits a thread and matrix, in two loads of 16 bytes."""
OPTIONS = {"num_warps": 16, "maxnreg": 64}
"""Two programs fit into a multiprocessor. They are not tuned on the spot: another choice would sum in another order."""
LOWEST = tl.constexpr(-3.4028234663852886e38)
"""Below every finite logit, and finite itself: −∞ − −∞ is not a number."""
MOST = tl.constexpr(1e30)
"""|log(q / p)| where one of them is 0, times which 0 is still 0."""
LOG_2 = tl.constexpr(0.6931471805599453)
NOT_SPECIALIZED = ("first_row", "first_position", "num_rows")
"""Numbers that change from chunk to chunk: one compiled kernel serves them all."""


@triton.jit
def normalize_target(
    target: tl.tensor, normalizers: tl.tensor, best: tl.tensor, vocab: tl.tensor, softcap: tl.tensor,
    CAPPED: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Write the normalizer and the most likely token, of equals the first, of each distinct target position."""
    row = tl.program_id(0)
    raw = target + row.to(tl.int64) * vocab
    normalizer, _, place, _, _ = _statistics(raw, raw, -1, -1, vocab, softcap, CAPPED, False, TILE)
    tl.store(normalizers + row, normalizer)
    tl.store(best + row, place)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def measure_rows(
    draft: tl.tensor, bias: tl.tensor, draft_gradient: tl.tensor, bias_gradient: tl.tensor, labels: tl.tensor,
    target: tl.tensor, normalizers: tl.tensor, best: tl.tensor, index: tl.tensor, measured: tl.tensor,
    first_row: tl.tensor, first_position: tl.tensor, num_rows: tl.tensor, vocab: tl.tensor, softcap: tl.tensor,
    cross_entropy: tl.tensor, variation: tl.tensor, soft: tl.tensor, forward: tl.tensor, reverse: tl.tensor,
    shannon: tl.tensor, keep: tl.tensor, hybrid: tl.tensor, sharpness: tl.tensor, least: tl.tensor,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, HELD: tl.constexpr, SLOPED: tl.constexpr, DIVERGENT: tl.constexpr,
    LABELLED: tl.constexpr, GRADIENT: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Write what is measured of each row, and its gradient, without row weights, over the logits or beside them.

    Args:
        draft: logits of the chunk's rows; `bias` and the gradients of both beside them.
        labels: of all rows; written where they are not given (LABELLED): the target's most likely tokens.
        target: logits of the chunk's distinct positions, with `normalizers` and `best` of each.
        index: which of all distinct positions each row is held against.
        measured: `(5, num_rows)` cross-entropy, ‖q − p‖₁, soft cross-entropy, acceptance, agreement; with DIVERGENT
            four more: forward and reverse KL, Jensen-Shannon, Σ min(p, q).
        first_row: which of all rows is the chunk's first; `first_position` likewise.
        cross_entropy: factors of the terms, up to `hybrid`; `keep` that of −log acceptance, `least` what it stops at.
        HELD: whether there is a target.
        SLOPED: whether a term needs ⟨u, q⟩.
        DIVERGENT: whether there is a term beside the first three.
        GRADIENT: whether it is wanted.
    """
    row = tl.program_id(0)
    at_row = row.to(tl.int64) * vocab
    label = 0
    if LABELLED:
        label = tl.load(labels + first_row + row).to(tl.int32)
    place = label
    normalizer_p = 0.0
    likely = target
    if HELD:
        position = tl.load(index + first_row + row) - first_position
        place = tl.load(best + position)
        if not LABELLED:
            label = place
            tl.store(labels + first_row + row, label.to(labels.dtype.element_ty))
        normalizer_p = tl.load(normalizers + position)
        likely = target + position.to(tl.int64) * vocab
    normalizer, top, _, said, wanted = _statistics(
        draft + at_row, bias + at_row, label, place, vocab, softcap, CAPPED, BIASED, TILE
    )
    tl.store(measured + first_row + row, normalizer - said)
    mean = 0.0
    if HELD:
        distance, expected, common, mean, signs, entropy, ratio, shannon_of_q, shannon_of_p = _sweep(
            draft + at_row, bias + at_row, likely, draft_gradient + at_row, bias_gradient + at_row,
            normalizer, normalizer_p, label, mean, vocab, softcap, cross_entropy, variation, soft, reverse, shannon,
            CAPPED, BIASED, True, SLOPED, DIVERGENT, True, GRADIENT and not SLOPED and not DIVERGENT, True, TILE,
        )  # fmt: skip
        tl.store(measured + num_rows + first_row + row, distance)
        tl.store(measured + 2 * num_rows + first_row + row, expected)
        tl.store(measured + 3 * num_rows + first_row + row, tl.where(common > 1, 1.0, common))
        tl.store(measured + 4 * num_rows + first_row + row, (wanted == top).to(tl.float32))
        if DIVERGENT:
            tl.store(measured + 5 * num_rows + first_row + row, expected - entropy)
            tl.store(measured + 6 * num_rows + first_row + row, ratio)
            tl.store(measured + 7 * num_rows + first_row + row, 0.5 * (shannon_of_q + shannon_of_p))
            tl.store(measured + 8 * num_rows + first_row + row, common)
            mixed = tl.exp(-sharpness * common)
            kept = tl.where(common >= least, keep / tl.maximum(common, least), 0.0)
            variation += 0.5 * (kept + hybrid * (1.0 - mixed))
            soft += forward + hybrid * mixed
            mean = variation * signs + reverse * ratio + 0.5 * shannon * shannon_of_q
    if GRADIENT and (SLOPED or DIVERGENT or not HELD):
        _sweep(
            draft + at_row, bias + at_row, likely, draft_gradient + at_row, bias_gradient + at_row,
            normalizer, normalizer_p, label, mean, vocab, softcap, cross_entropy, variation, soft, reverse, shannon,
            CAPPED, BIASED, HELD, SLOPED, DIVERGENT, False, True, not HELD, TILE,
        )  # fmt: skip


@triton.jit
def _statistics(
    raw: tl.tensor, bias: tl.tensor, label: tl.tensor, place: tl.tensor, vocab: tl.tensor, softcap: tl.tensor,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, TILE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return log Σ exp z, the largest z and its first place, and z at a label and at a place."""
    lanes = tl.arange(0, TILE)
    top = tl.full([TILE], LOWEST, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    first = tl.zeros([TILE], tl.int32)
    at_label = tl.full([TILE], float("-inf"), tl.float32)
    at_place = tl.full([TILE], float("-inf"), tl.float32)
    for start in range(0, vocab, TILE):
        at = start + lanes
        z, _ = _read(raw, bias, at, at < vocab, softcap, CAPPED, BIASED)
        above = z > top
        decay = tl.exp(-tl.abs(z - top))
        total = tl.where(above, total * decay + 1.0, total + decay)
        top = tl.where(above, z, top)
        first = tl.where(above, at, first)
        at_label = tl.where(at == label, z, at_label)
        at_place = tl.where(at == place, z, at_place)
    best = tl.max(top, 0)
    normalizer = best + tl.log(tl.sum(total * tl.exp(top - best), 0))
    return (
        normalizer,
        best,
        tl.min(tl.where(top == best, first, vocab), 0),
        tl.max(at_label, 0),
        tl.max(at_place, 0),
    )


@triton.jit
def _sweep(
    raw: tl.tensor, bias: tl.tensor, likely: tl.tensor, raw_gradient: tl.tensor, bias_gradient: tl.tensor,
    normalizer: tl.tensor, normalizer_p: tl.tensor, label: tl.tensor, mean: tl.tensor, vocab: tl.tensor,
    softcap: tl.tensor, cross_entropy: tl.tensor, variation: tl.tensor, soft: tl.tensor, reverse: tl.tensor,
    shannon: tl.tensor, CAPPED: tl.constexpr, BIASED: tl.constexpr, HELD: tl.constexpr, SLOPED: tl.constexpr,
    DIVERGENT: tl.constexpr, SUMS: tl.constexpr, GRADIENT: tl.constexpr, BACK: tl.constexpr, TILE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return sums over a row (SUMS), and write its gradient (GRADIENT).

    ‖q − p‖₁, soft cross-entropy, Σ min(p, q), ⟨u, q⟩; and with DIVERGENT, else 0: ⟨sign(q − p), q⟩, the entropy of p,
    reverse KL, and of q and of p the divergence from their mean.

    BACK: from the last tile to the first.
    """
    lanes = tl.arange(0, TILE)
    distance = tl.zeros([TILE], tl.float32)
    expected = tl.zeros([TILE], tl.float32)
    common = tl.zeros([TILE], tl.float32)
    slopes = tl.zeros([TILE], tl.float32)
    signs = tl.zeros([TILE], tl.float32)
    entropy = tl.zeros([TILE], tl.float32)
    ratio = tl.zeros([TILE], tl.float32)
    of_q = tl.zeros([TILE], tl.float32)
    of_p = tl.zeros([TILE], tl.float32)
    tiles = tl.cdiv(vocab, TILE)
    for number in range(0, tiles):
        tile = tiles - 1 - number if BACK else number
        at = tile * TILE + lanes
        inside = at < vocab
        z, bend = _read(raw, bias, at, inside, softcap, CAPPED, BIASED)
        log_q = z - normalizer
        q = tl.exp(log_q)
        p, log_p = _chances(likely, at, inside, normalizer_p, softcap, CAPPED, HELD, TILE)
        if DIVERGENT:
            apart, beside_q, beside_p = _apart(log_q, log_p)
        if SUMS:
            distance += tl.abs(q - p)
            expected -= tl.where(p == 0, 0.0, p * log_q)
            common += tl.minimum(q, p)
            if DIVERGENT:
                signs += q * _slope(q, p, 1.0)
                entropy -= tl.where(p == 0, 0.0, p * log_p)
                ratio += q * apart
                of_q += q * beside_q
                of_p += p * beside_p
            elif SLOPED:
                slopes += q * _slope(q, p, variation)
        if GRADIENT:
            gradient = (cross_entropy + soft) * q - soft * p
            if DIVERGENT:
                gradient += q * (reverse * apart + 0.5 * shannon * beside_q)
            if DIVERGENT or SLOPED:
                gradient += q * (_slope(q, p, variation) - mean)
            gradient -= tl.where(at == label, cross_entropy, 0.0)
            if CAPPED and BIASED:
                tl.store(bias_gradient + at, gradient.to(bias_gradient.dtype.element_ty), mask=inside)
            tl.store(raw_gradient + at, (gradient * bend).to(raw_gradient.dtype.element_ty), mask=inside)
    return (
        tl.sum(distance, 0),
        tl.sum(expected, 0),
        tl.sum(common, 0),
        tl.sum(slopes, 0),
        tl.sum(signs, 0),
        tl.sum(entropy, 0),
        tl.sum(ratio, 0),
        tl.sum(of_q, 0),
        tl.sum(of_p, 0),
    )


@triton.jit
def _chances(
    likely: tl.tensor, at: tl.tensor, inside: tl.tensor, normalizer: tl.tensor, softcap: tl.tensor,
    CAPPED: tl.constexpr, HELD: tl.constexpr, TILE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return p and log p; 0 where there is no target (HELD)."""
    log_p = tl.zeros([TILE], tl.float32)
    p = tl.zeros([TILE], tl.float32)
    if HELD:
        t, _ = _read(likely, likely, at, inside, softcap, CAPPED, False)
        log_p = t - normalizer
        p = tl.exp(log_p)
    return p, log_p


@triton.jit
def _apart(log_q: tl.tensor, log_p: tl.tensor) -> tl.tuple:
    """Return log(q / p), log(2q / (p + q)) and log(2p / (p + q)), finite also where a chance is 0."""
    none_q, none_p = log_q == float("-inf"), log_p == float("-inf")
    ratio = tl.where(none_q, tl.where(none_p, 0.0, -MOST), tl.where(none_p, MOST, log_q - log_p))
    tail = LOG_2 - tl.log(1.0 + tl.exp(-tl.abs(ratio)))
    return ratio, tail - tl.maximum(-ratio, 0.0), tail - tl.maximum(ratio, 0.0)


@triton.jit
def _slope(q: tl.tensor, p: tl.tensor, variation: tl.tensor) -> tl.tuple:
    """Return u = ∂ℓ/∂q of the terms whose gradient is q⊙(u − ⟨u, q⟩)."""
    return tl.where(q > p, variation, 0.0) - tl.where(q < p, variation, 0.0)


@triton.jit
def _read(
    raw: tl.tensor, bias: tl.tensor, at: tl.tensor, inside: tl.tensor, softcap: tl.tensor, CAPPED: tl.constexpr,
    BIASED: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return logits, −∞ beyond the vocabulary, and their derivative with respect to what the head made."""
    z = tl.load(raw + at, mask=inside, other=float("-inf"))
    bend = 1.0
    if CAPPED:
        decay = tl.exp(-2.0 * tl.abs(z / softcap))
        size = softcap * (1.0 - decay) / (1.0 + decay)
        z = tl.where(inside, tl.where(z < 0, -size, size), float("-inf"))
        bend = 4.0 * decay / ((1.0 + decay) * (1.0 + decay))
    if BIASED:
        z += tl.load(bias + at, mask=inside, other=0.0)
    return z, bend
