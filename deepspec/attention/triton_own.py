"""What each slot of a block reads of its own block, in one kernel forward and one backward, in Triton: on CUDA.

A block has few slots, so that its products are far too small for a library's: in torch they are some eight launches a
layer, with copies that lay queries and keys side by side. Here a program has a block and a group of heads, whose
queries are the rows of one small product. Nothing but the normaliser is kept for the backward pass.

It is an operator of its own, so that compiled code takes it as it is.

Legend: that of `split.py`; R = H/G · K rows of a program, C = K columns, both rounded up to what products take.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepspec.attention.split import SMALLEST

OPTIONS = {"num_warps": 4}


def _sizes(query: Tensor, key: Tensor, slots: int) -> dict[str, int]:
    heads, size = query.shape[1] // key.shape[1], query.shape[3]
    return {
        "HEADS": heads, "SLOTS": slots, "SIZE": size, "ROWS": max(SMALLEST, triton.next_power_of_2(heads * slots)),
        "COLUMNS": max(SMALLEST, triton.next_power_of_2(slots)), "WIDTH": max(SMALLEST, triton.next_power_of_2(size)),
    }  # fmt: skip


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of batch, head and place of each; those of a head's sizes are 1."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension lies in one piece."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _by_place(like: Tensor, places: int) -> Tensor:
    """Return room for `(B, H, Q, d)` that lies in memory as `(B, Q, H, d)`, as projections read and make it."""
    return like.new_empty(like.shape[0], places, like.shape[1], like.shape[3]).transpose(1, 2)


@torch.library.custom_op("deepspec::own_block", mutates_args=())
def own_block(
    query: Tensor, key: Tensor, value: Tensor, slots: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return what each slot reads of its block, `(B, H, N·K, d)`, and the normalisers' logarithms, `(B, H, N·K)` fp32.

    Args:
        query: `(B, H, Q, d)`, of which the first N·K are slots.
        key: `(B, G, N·K, d)`.
        value: of the same shape.
        slots: K.
        causal: whether a slot sees none behind it.
        scale: factor on query·key.
    """
    query, key, value = map(_dense, (query, key, value))
    places = key.shape[2]
    read = _by_place(query, places)
    lse = query.new_empty(query.shape[0], query.shape[1], places, dtype=torch.float32)
    with torch.cuda.device_of(query):  # Triton launches on the current one
        read_block[(places // slots, key.shape[1], len(key))](
            query, key, value, read, lse, *_strides(query, key, value, read), *lse.stride()[:2], scale,
            CAUSAL=causal, **_sizes(query, key, slots), **OPTIONS,
        )  # fmt: skip
    return read, lse


@own_block.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, slots: int, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    del value, slots, causal, scale
    lse = query.new_empty(query.shape[0], query.shape[1], key.shape[2], dtype=torch.float32)
    return _by_place(query, key.shape[2]), lse


@torch.library.custom_op("deepspec::_own_block_backward", mutates_args=())
def _own_block_backward(
    grad_read: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, slots: int,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of queries, keys and values; of queries that are no slots it is 0."""
    grad_read, query, key, value = map(_dense, (grad_read, query, key, value))
    grad_lse = grad_lse.contiguous()
    places, spare = key.shape[2], query.shape[2] - key.shape[2]
    grad_query, grad_key, grad_value = _by_place(query, query.shape[2]), _by_place(key, places), _by_place(key, places)
    if spare:
        grad_query[:, :, places:].zero_()
    with torch.cuda.device_of(query):
        trace_block[(places // slots, key.shape[1], len(key))](
            query, key, value, lse, grad_read, grad_lse, grad_query, grad_key, grad_value,
            *_strides(query, key, value, grad_read, grad_query, grad_key, grad_value), *lse.stride()[:2], scale,
            CAUSAL=causal, **_sizes(query, key, slots), **OPTIONS,
        )  # fmt: skip
    return grad_query, grad_key, grad_value


@_own_block_backward.register_fake
def _(
    grad_read: Tensor, grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, slots: int,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del grad_read, grad_lse, value, lse, slots, causal, scale
    return _by_place(query, query.shape[2]), _by_place(key, key.shape[2]), _by_place(key, key.shape[2])


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    query, key, value, ctx.slots, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, output[1])


def _trace(ctx, grad_read: Tensor, grad_lse: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    query, key, value, lse = ctx.saved_tensors
    grads = _own_block_backward(grad_read, grad_lse, query, key, value, lse, ctx.slots, ctx.causal, ctx.scale)
    return *grads, None, None, None


own_block.register_autograd(_trace, setup_context=_keep)


@triton.jit
def read_block(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, read: tl.tensor, normalizers: tl.tensor,
    qb: tl.tensor, qh: tl.tensor, qp: tl.tensor, kb: tl.tensor, kh: tl.tensor, kp: tl.tensor, vb: tl.tensor,
    vh: tl.tensor, vp: tl.tensor, rb: tl.tensor, rh: tl.tensor, rp: tl.tensor, nb: tl.tensor, nh: tl.tensor,
    scale: tl.tensor, CAUSAL: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr, SIZE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write what the slots of a block read in the heads of a group, and their normalisers."""
    at_q, at_k, at_v, at_r, at_n = _places(
        qb, qh, qp, kb, kh, kp, vb, vh, vp, rb, rh, rp, nb, nh, HEADS, SLOTS, ROWS, COLUMNS
    )
    rows, columns, sizes = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, WIDTH)
    inside_r = (rows < HEADS * SLOTS)[:, None] & (sizes < SIZE)[None, :]
    inside_c = (columns < SLOTS)[:, None] & (sizes < SIZE)[None, :]
    q = tl.load(query + at_q[:, None] + sizes[None, :], mask=inside_r, other=0.0)
    k = tl.load(key + at_k[:, None] + sizes[None, :], mask=inside_c, other=0.0)
    v = tl.load(value + at_v[:, None] + sizes[None, :], mask=inside_c, other=0.0)
    scores = _scores(q, k, scale, CAUSAL, SLOTS, ROWS, COLUMNS)
    top = tl.max(scores, 1)
    weights = tl.exp(scores - top[:, None])
    total = tl.sum(weights, 1)
    weights = weights / total[:, None]
    found = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    tl.store(read + at_r[:, None] + sizes[None, :], found.to(read.dtype.element_ty), mask=inside_r)
    tl.store(normalizers + at_n, top + tl.log(total), mask=rows < HEADS * SLOTS)


@triton.jit
def trace_block(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, normalizers: tl.tensor, grad_read: tl.tensor,
    grad_lse: tl.tensor, grad_query: tl.tensor, grad_key: tl.tensor, grad_value: tl.tensor,
    qb: tl.tensor, qh: tl.tensor, qp: tl.tensor, kb: tl.tensor, kh: tl.tensor, kp: tl.tensor, vb: tl.tensor,
    vh: tl.tensor, vp: tl.tensor, rb: tl.tensor, rh: tl.tensor, rp: tl.tensor, gqb: tl.tensor, gqh: tl.tensor,
    gqp: tl.tensor, gkb: tl.tensor, gkh: tl.tensor, gkp: tl.tensor, gvb: tl.tensor, gvh: tl.tensor, gvp: tl.tensor,
    nb: tl.tensor, nh: tl.tensor, scale: tl.tensor, CAUSAL: tl.constexpr, HEADS: tl.constexpr, SLOTS: tl.constexpr,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients of a block in the heads of a group."""
    at_q, at_k, at_v, at_r, at_n = _places(
        qb, qh, qp, kb, kh, kp, vb, vh, vp, rb, rh, rp, nb, nh, HEADS, SLOTS, ROWS, COLUMNS
    )
    to_q, to_k, to_v, _, _ = _places(
        gqb, gqh, gqp, gkb, gkh, gkp, gvb, gvh, gvp, rb, rh, rp, nb, nh, HEADS, SLOTS, ROWS, COLUMNS
    )
    rows, columns, sizes = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, WIDTH)
    real = rows < HEADS * SLOTS
    inside_r = real[:, None] & (sizes < SIZE)[None, :]
    inside_c = (columns < SLOTS)[:, None] & (sizes < SIZE)[None, :]
    q = tl.load(query + at_q[:, None] + sizes[None, :], mask=inside_r, other=0.0)
    k = tl.load(key + at_k[:, None] + sizes[None, :], mask=inside_c, other=0.0)
    v = tl.load(value + at_v[:, None] + sizes[None, :], mask=inside_c, other=0.0)
    g = tl.load(grad_read + at_r[:, None] + sizes[None, :], mask=inside_r, other=0.0)
    lse = tl.load(normalizers + at_n, mask=real, other=0.0)
    beside = tl.load(grad_lse + at_n, mask=real, other=0.0)
    scores = _scores(q, k, scale, CAUSAL, SLOTS, ROWS, COLUMNS)
    weights = tl.where(real[:, None], tl.exp(scores - lse[:, None]), 0.0)
    of_weights = tl.dot(g, tl.trans(v), input_precision="ieee")
    mean = tl.sum(weights * of_weights, 1)
    of_scores = (weights * (of_weights - mean[:, None] + beside[:, None]) * scale).to(k.dtype)
    of_q = tl.dot(of_scores, k, input_precision="ieee")
    of_k = tl.dot(tl.trans(of_scores), q, input_precision="ieee")
    of_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
    tl.store(grad_query + to_q[:, None] + sizes[None, :], of_q.to(grad_query.dtype.element_ty), mask=inside_r)
    tl.store(grad_key + to_k[:, None] + sizes[None, :], of_k.to(grad_key.dtype.element_ty), mask=inside_c)
    tl.store(grad_value + to_v[:, None] + sizes[None, :], of_v.to(grad_value.dtype.element_ty), mask=inside_c)


@triton.jit
def _places(
    qb: tl.tensor, qh: tl.tensor, qp: tl.tensor, kb: tl.tensor, kh: tl.tensor, kp: tl.tensor, vb: tl.tensor,
    vh: tl.tensor, vp: tl.tensor, rb: tl.tensor, rh: tl.tensor, rp: tl.tensor, nb: tl.tensor, nh: tl.tensor,
    HEADS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Return where the rows and columns of a program begin in queries, keys, values, what is read, normalisers."""
    block, group, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    head = (group * HEADS + rows // SLOTS).to(tl.int64)
    place = (block * SLOTS + rows % SLOTS).to(tl.int64)
    column = (block * SLOTS + columns).to(tl.int64)
    return (
        batch * qb + head * qh + place * qp,
        batch * kb + group * kh + column * kp,
        batch * vb + group * vh + column * vp,
        batch * rb + head * rh + place * rp,
        batch * nb + head * nh + place,
    )


@triton.jit
def _scores(
    q: tl.tensor, k: tl.tensor, scale: tl.tensor, CAUSAL: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the scores of rows and columns, −∞ where a row does not see a column."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    seen = (columns < SLOTS)[None, :]
    if CAUSAL:
        seen = seen & (columns[None, :] <= (rows % SLOTS)[:, None])
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where(seen, scores, float("-inf"))
