"""In torch: attention over a cache, bookkeeping of a chain of drafts, norms and gates of Qwen3.5's attention.

Signatures are those by which SGLang 0.5.23 calls its kernels for CPUs. Chains only (`--speculative-eagle-topk 1`).

Legend: Q queries, L positions read, H heads, G heads of keys, D size of a head.
"""

import ctypes
from typing import Any, NoReturn

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("sgl_kernel", "DEF")


def _attend(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, seen_QL: Tensor, scale: float, cap: float) -> Tensor:
    groups = q_QHD.shape[1] // k_LGD.shape[1]
    k_LHD, v_LHD = (each.float().repeat_interleave(groups, 1) for each in (k_LGD, v_LGD))
    scores = torch.einsum("qhd,lhd->hql", q_QHD.float(), k_LHD) * scale
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~seen_QL, float("-inf"))
    return torch.einsum("hql,lhd->qhd", scores.softmax(-1), v_LHD).to(q_QHD.dtype)


def _decode(
    q: Tensor, keys: Tensor, values: Tensor, _key_scale: float, _value_scale: float, output: Tensor, key: Tensor | None,
    value: Tensor | None, places: Tensor, _: Tensor, table: Tensor, rows: Tensor, lengths: Tensor, scale: float,
    cap: float, crossed: bool, window: int, encoded: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    _check(crossed, encoded, sinks)
    if key is not None and value is not None:
        keys[places], values[places] = key.view(-1, *keys.shape[1:]), value.view(-1, *values.shape[1:])
    for row, length in enumerate(lengths.tolist()):
        at = table[rows[row], :length].long()
        seen = torch.ones(1, length, dtype=torch.bool)
        if window > 0:
            seen[:, : max(0, length - window)] = False
        output[row : row + 1] = _attend(q[row : row + 1], keys[at], values[at], seen, scale, cap)


def _extend(
    q: Tensor, key: Tensor | None, value: Tensor | None, output: Tensor, keys: Tensor, values: Tensor,
    _key_scale: float, _value_scale: float, table: Tensor, rows: Tensor, lengths: Tensor, news: Tensor, starts: Tensor,
    _: int, scale: float, cap: float, crossed: bool, window: int, encoded: Tensor | None, sinks: Tensor | None,
    tree: Tensor | None, causal: bool,
) -> None:  # fmt: skip
    _check(crossed, encoded, sinks)
    if tree is not None:
        raise NotImplementedError("a tree of drafts has no stand-in")
    for row, length in enumerate(lengths.tolist()):
        new, start = int(news[row]), int(starts[row])
        at = table[rows[row], :length].long()
        k, v = keys[at], values[at]
        if key is not None and value is not None:
            k[length - new :] = key.view(-1, *keys.shape[1:])[start : start + new].to(k.dtype)
            v[length - new :] = value.view(-1, *values.shape[1:])[start : start + new].to(v.dtype)
        here, there = torch.arange(length - new, length).unsqueeze(1), torch.arange(length).unsqueeze(0)
        seen = there <= here if causal else torch.ones(new, length, dtype=torch.bool)
        if window > 0:
            seen = seen & (there > here - window)
        output[start : start + new] = _attend(q[start : start + new], k, v, seen, scale, cap)


def _check(crossed: bool, encoded: Tensor | None, sinks: Tensor | None) -> None:
    if crossed or encoded is not None or sinks is not None:
        raise NotImplementedError("attention across an encoder, or with sinks, has no stand-in")


def build_draft_decode_metadata_cpu(
    table: Tensor, rows: Tensor, _lengths: Tensor, topk: int, _steps: int, _wide: int
) -> Tensor:
    """Return the table of a chain's rows."""
    _check_chain(topk)
    return table[rows].contiguous()


def _check_chain(topk: int) -> None:
    if topk != 1:
        raise NotImplementedError("a tree of drafts has no stand-in; --speculative-eagle-topk 1")


def assign_draft_cache_locs_contiguous_cpu(
    rows: Tensor, table: Tensor, lengths: Tensor, out: Tensor, _wide: int, topk: int, columns: int
) -> None:
    """Write the places of the tokens that are drafted next."""
    width = topk * columns
    for row, start in enumerate(lengths.tolist()):
        out[row * width : (row + 1) * width] = table[rows[row], start : start + width]


def assign_extend_cache_locs_cpu(
    rows: Tensor, table: Tensor, start: Tensor, end: Tensor, out: Tensor, _wide: int
) -> None:
    """Write the places from start to end of each row, one row after another."""
    at = 0
    for row, (first, last) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        out[at : at + last - first] = table[rows[row], first:last]
        at += last - first


def assign_req_to_token_pool_cpu(
    rows: Tensor, table: Tensor, start: Tensor, end: Tensor, places: Tensor, _wide: int
) -> None:
    """Write places into the table."""
    at = 0
    for row, (first, last) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        table[rows[row], first:last] = places[at : at + last - first].to(table.dtype)
        at += last - first


def fill_bonus_tokens_cpu(accepted: Tensor, lengths: Tensor, bonus: Tensor, stride: int) -> None:
    """Write each row's last accepted token."""
    bonus.copy_(accepted.view(-1)[torch.arange(len(lengths)) * stride + lengths - 1])


def fill_accept_out_cache_loc_cpu(accepted: Tensor, places: Tensor, out: Tensor) -> None:
    """Write the places of what was accepted, close together."""
    kept = accepted.view(-1)
    kept = kept[kept > -1].long()
    out.view(-1)[: len(kept)] = places[kept]


def copy_all_layer_kv_cache_cpu(pointers: Tensor, strides: Tensor, targets: Tensor, sources: Tensor) -> None:
    """Move rows of keys and values of all layers: all of a layer are read before one is written."""
    for pointer, stride in zip(pointers.tolist(), strides.tolist(), strict=True):
        moved = [ctypes.string_at(pointer + at * stride, stride) for at in sources.tolist()]
        for at, row in zip(targets.tolist(), moved, strict=True):
            ctypes.memmove(pointer + at * stride, row, stride)


def build_tree_kernel_efficient_cpu(
    _parents: Tensor, _chosen: Tensor, lengths: Tensor, mask: Tensor, positions: Tensor, index: Tensor,
    following: Tensor, _siblings: Tensor, topk: int, _depth: int, count: int, _mode: int,
) -> None:  # fmt: skip
    """Write the links, positions and mask of a chain; links that are not there are -1 before."""
    _check_chain(topk)
    steps = torch.arange(count)
    for row, length in enumerate(lengths.tolist()):
        positions.view(-1, count)[row] = length + steps
        index.view(-1, count)[row] = row * count + steps
        following.view(-1, count)[row, :-1] = steps[1:]
        square = torch.ones(count, count, dtype=torch.bool).tril()
        mask.view(-1)[row * count * count : (row + 1) * count * count] = square.view(-1)


def verify_tree_greedy_cpu(
    predicts: Tensor, accept_index: Tensor, accept_token_num: Tensor, candidates: Tensor, retrive_index: Tensor,
    retrive_next_token: Tensor, retrive_next_sibling: Tensor, target_predict: Tensor,
) -> None:  # fmt: skip
    """Go along the drafts while the target's choice is among the next ones; its last choice is its own token."""
    told = target_predict.reshape(-1)
    for row in range(candidates.shape[0]):
        last, node, count = int(retrive_index[row, 0]), 0, 0
        accept_index[row, 0] = last
        for _ in range(1, accept_index.shape[1]):
            node = int(retrive_next_token[row, node])
            while node != -1 and int(candidates[row, node]) != int(told[last]):
                node = int(retrive_next_sibling[row, node])
            if node == -1:
                break
            predicts[last] = told[last]
            last, count = int(retrive_index[row, node]), count + 1
            accept_index[row, count] = last
        accept_token_num[row] = count
        predicts[last] = told[last]


def rotate_input_ids_cpu(*_: Any) -> NoReturn:
    """Refuse heads of several layers."""
    raise NotImplementedError("heads of several layers have no stand-in")


def _norm(x: Tensor, weight: Tensor, eps: float, size: int) -> Tensor:
    heads = x.reshape(-1, size).float()
    heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * (1.0 + weight.float())
    return heads.to(x.dtype)


def _norms(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, size: int) -> tuple[Tensor, Tensor]:
    return _norm(q, q_weight, eps, size), _norm(k, k_weight, eps, size)


def _gated_norms(
    gated: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, size: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, gate = gated.reshape(-1, heads, 2 * size).chunk(2, dim=-1)
    return *_norms(q, k, q_weight, k_weight, eps, size), gate.reshape(-1, size).contiguous()


def _gate(x: Tensor, gate: Tensor) -> None:
    x.mul_(torch.sigmoid(gate.float()).to(x.dtype).reshape(x.shape))


def _linear(*_: Any) -> NoReturn:
    raise NotImplementedError("linear attention has no stand-in")


for _signature, _function in (
    (
        "decode_attention_cpu(Tensor q, Tensor(a!) k, Tensor(b!) v, float ks, float vs, Tensor(c!) o, Tensor? nk, "
        "Tensor? nv, Tensor at, Tensor l, Tensor t, Tensor r, Tensor n, float s, float c, bool x, int w, Tensor? e, "
        "Tensor? sinks) -> ()",
        _decode,
    ),
    (
        "extend_attention_cpu(Tensor q, Tensor? nk, Tensor? nv, Tensor(a!) o, Tensor k, Tensor v, float ks, float vs, "
        "Tensor t, Tensor r, Tensor n, Tensor el, Tensor st, int m, float s, float c, bool x, int w, Tensor? e, "
        "Tensor? sinks, Tensor? tree, bool causal) -> ()",
        _extend,
    ),
    ("fused_sigmoid_mul_cpu(Tensor(a!) x, Tensor gate) -> ()", _gate),
    (
        "fused_qk_gemma_rmsnorm_cpu(Tensor q, Tensor k, Tensor qw, Tensor kw, float e, int d) -> (Tensor, Tensor)",
        _norms,
    ),
    (
        "fused_qk_gemma_rmsnorm_with_gate_cpu(Tensor q, Tensor k, Tensor qw, Tensor kw, float e, int d, int h) -> "
        "(Tensor, Tensor, Tensor)",
        _gated_norms,
    ),
    ("fused_qkvzba_split_reshape_cat_contiguous_cpu(Tensor a) -> ()", _linear),
    ("fused_sigmoid_gating_delta_rule_update_cpu(Tensor a) -> ()", _linear),
    ("fused_gdn_gating_cpu(Tensor a) -> ()", _linear),
):
    _LIBRARY.define(_signature)
    _LIBRARY.impl(_signature.partition("(")[0], _function, "CPU")
