"""A general reading held against the loaded model's own outputs, on a few tokens: proof instead of trust.

    logits    the head's product with the captured last state, softcapped, against the model's logits
    states    what the blocks put out against `output_hidden_states`, at every layer that can be captured
    prefix    the first half of the tokens alone, and in a padded batch, against the same positions of the whole: what
              stands to the right is never seen, and padding changes nothing
    ends      embedding and head as training reads them from the files, against those in memory
    rope      the frequencies that the draft inherits against those of the model's rotary embedding

Nothing that fails is repaired: the target is refused, with what differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from deepspec.attention.rope import inverse_frequencies
from deepspec.errors import TargetError
from deepspec.families import TargetShape
from deepspec.families.ends import ends_of, head_bias
from deepspec.families.quantized import computes_quantised
from deepspec.families.shape import Rope
from deepspec.formats.tensor_heads import WEIGHTS, TensorHead, read_heads, read_placed
from deepspec.target.capture import capture
from deepspec.target.layers import EMBEDDING
from deepspec.target.reading import PROBE, Reading, bias_of, probe_ids

APART = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest relative distance, by dtype: other shapes round otherwise, and layers add that up. What is misread is off by
0.3 and more."""

_COARSE = APART[torch.bfloat16]

_ROWS = 4
_ROUNDED = 0.01
"""Relative distance of a row that was stored in another precision."""

_FREQUENCY = 1e-3
"""Largest relative distance of rope frequencies, which are fp32 in every model."""


def prove(model: Any, reading: Reading, shape: TargetShape) -> None:
    """Hold a reading against its model.

    Args:
        model: of transformers, in eval mode.
        reading: what is claimed of it.
        shape: what its config claims.

    Raises:
        TargetError: something differs; the message says what, and by how much.
    """
    found = [line for line in _differences(model, reading, shape) if line]
    if found:
        raise TargetError(
            f"target of model_type {shape.top_model_type!r} is not what the general reading takes it for: "
            f"{'; '.join(found)}; it cannot be drafted for"
        )


def prove_ends(model: Any, folder: Path, shape: TargetShape) -> None:
    """Hold embedding and head in a checkpoint's files against those of the loaded model, at their first and last rows.

    Raises:
        TargetError: the files have no embedding, or it is another one.
    """
    heads = read_heads(folder)
    found = ends_of(heads, shape.vocab_size, shape.block.hidden_size)
    if found is None:
        raise TargetError(f"target {folder}: no tensor in its safetensors files is an embedding; not supported")
    placed = dict.fromkeys(heads, WEIGHTS) if (folder / WEIGHTS).exists() else read_placed(folder)
    pairs = {found.embedding: model.get_input_embeddings().weight, found.head: model.get_output_embeddings().weight}
    for name, weight in {**pairs, **_bias(model, folder, heads, shape)}.items():
        with safe_open(folder / placed[name], "pt") as file:
            rows = file.get_slice(name)
            for part in (slice(0, _ROWS), slice(len(weight) - _ROWS, len(weight))):
                ours, theirs = rows[part].to(weight.dtype), weight[part].cpu()
                if not weight.is_meta and distance(ours, theirs) > _ROUNDED:
                    raise TargetError(
                        f"target {folder}: {name} in its files is not what the loaded model has in its place: it is "
                        "stored in another form; not supported"
                    )


def _bias(model: Any, folder: Path, heads: Mapping[str, TensorHead], shape: TargetShape) -> dict[str, Tensor]:
    """Return the name of the head's bias in the files, and the loaded model's; nothing where neither has one.

    Raises:
        TargetError: one of them has none.
    """
    name, bias = head_bias(folder, heads, shape.vocab_size), bias_of(model.get_output_embeddings())
    if bias is not None and bias.is_meta:
        return {}
    if (name is None) != (bias is None):
        raise TargetError(
            f"target {folder}: a bias over the vocabulary in its files is {name or 'none'}, the loaded model's head "
            f"has {'one' if name is None else 'none'}; not supported"
        )
    return {} if name is None or bias is None else {name: bias}


@torch.no_grad()
def _differences(model: Any, reading: Reading, shape: TargetShape) -> Iterator[str]:
    yield _sizes(reading, shape)
    if len(reading.blocks) < 2:
        return
    ids, layers = probe_ids(model), list(range(EMBEDDING, len(reading.blocks) - 1))
    states, last = capture(reading, ids, layers)
    with _order(reading) as order:
        told = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    most = allowed(last.dtype, quantised=computes_quantised(model.config))
    yield _logits(reading, last, told.logits, most)
    yield _states(states, told.hidden_states, [0, *_places(reading, order)], most)
    yield _prefix(reading, ids, (states, last), layers, most)
    yield _rope(reading, shape)


def _sizes(reading: Reading, shape: TargetShape) -> str:
    found = {"layers": len(reading.blocks), "rows of the head": reading.head.weight.shape[0]}  # type: ignore[index]
    wanted = {"layers": shape.num_layers, "rows of the head": shape.vocab_size}
    wrong = [f"{name} {found[name]}, its config says {wanted[name]}" for name in found if found[name] != wanted[name]]
    return "; ".join(wrong)


def _logits(reading: Reading, last: Tensor, own: Tensor, most: float) -> str:
    ours = reading.head(last)
    if reading.softcap is not None:
        ours = reading.softcap * torch.tanh(ours / reading.softcap)
    apart = distance(ours, own)
    return "" if apart <= most else f"logits: ours are off by {apart:.2g} (scale {reading.logit_scale:g})"


@contextmanager
def _order(reading: Reading) -> Iterator[list[nn.Module]]:
    """Note which blocks run, one after the other."""
    order: list[nn.Module] = []
    with ExitStack() as hooks:
        for block in set(reading.blocks):
            hooks.callback(block.register_forward_hook(lambda module, *_: order.append(module)).remove)
        yield order


def _places(reading: Reading, order: Sequence[nn.Module]) -> list[int]:
    """Return behind how many runs of blocks the state of each block is there, the last run being that of all."""
    of = {block: [place for place, each in enumerate(order, start=1) if each is block] for block in set(order)}
    runs = reading.runs or [0] * len(reading.blocks)
    return [of[block][run] for block, run in zip(reading.blocks, runs, strict=True)]


def _states(states: Tensor, own: Any, places: Sequence[int], most: float) -> str:
    """Hold captured states against the model's own: those told begin with the embedding, or with the first block.

    Args:
        states: of the embedding and of all blocks but the last.
        own: the model's; one more than runs of blocks.
        places: of embedding and blocks among the model's.
        most: largest relative distance.
    """
    if own is None:
        return "states: it gives no hidden states to hold ours against"
    if len(own) != places[-1] + 1 or list(places) != sorted(set(places)):
        return f"states: it gives {len(own)} hidden states, our blocks would be behind those of places {list(places)}"
    ours = states.chunk(len(places) - 1, dim=-1)
    embedding_first = [distance(one, own[place]) for one, place in zip(ours, places[:-1], strict=True)]
    block_first = [0.0, *(distance(one, own[place - 1]) for one, place in zip(ours[1:], places[1:-1], strict=True))]
    apart = min(embedding_first, block_first, key=max)
    wrong = next((layer for layer, value in enumerate(apart, start=EMBEDDING) if not value <= most), None)
    return (
        "" if wrong is None else f"states: layer {wrong} is off by {apart[wrong - EMBEDDING]:.2g} from the model's own"
    )


def _prefix(reading: Reading, ids: Tensor, whole: tuple[Tensor, Tensor], layers: list[int], most: float) -> str:
    half = PROBE // 2
    alone = capture(reading, ids[:, :half], layers)
    padded = torch.cat([ids, ids.flip(1)])
    padded[0, half:] = ids[0, 0]
    batch = capture(reading, padded, layers)
    for name, found in (("a prefix alone", alone), ("a prefix in a padded batch", batch)):
        apart = max(distance(one[:1, :half], other[:, :half]) for one, other in zip(found, whole, strict=True))
        if not apart <= most:
            return f"prefix: {name} gives other states, off by {apart:.2g}: a position sees what stands to its right"
    return ""


def _rope(reading: Reading, shape: TargetShape) -> str:
    """Hold the inherited rope against every rotary embedding of the model: one has to be it."""
    if not shape.rope_inherited:
        return ""
    apart = [_rope_apart(shape.block.rope, *own) for own in _rotaries(reading.decoder)]
    if not apart or min(apart) <= _FREQUENCY:
        return ""
    rope = shape.block.rope
    return f"rope: {rope.kind} of theta {rope.theta:g}, as read, is off by {min(apart):.2g} from the model's own"


def _rotaries(decoder: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """Yield frequencies and the factor on cosines and sines of every rotary embedding."""
    for module in decoder.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1:
                yield buffer, float(getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0))


def _rope_apart(rope: Rope, own: Tensor, factor: float) -> float:
    ours = inverse_frequencies(rope, 2 * len(own)).to(own.device)
    if ours.shape != own.shape:
        return 1.0
    return max(distance(ours[:, None], own.float()[:, None]), abs(rope.attention_factor / factor - 1.0))


def allowed(dtype: torch.dtype, *, quantised: bool = False) -> float:
    """Return how far apart two ways to compute the same states may be.

    Args:
        dtype: of the states.
        quantised: whether they come of kernels for quantised weights, which may round activations by what else is in
            the batch, whatever precision they give: LLM.int8 is off by 0.02.
    """
    return max(APART.get(dtype, _COARSE), _COARSE if quantised else 0.0)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the relative distance of two tensors: of the largest row, so that one wrong position is enough."""
    if one.shape != other.shape:
        return 1.0
    first, second = one.double(), other.to(one.device).double()
    return float(((first - second).norm(dim=-1) / second.norm(dim=-1).clamp_min(1e-12)).max())
