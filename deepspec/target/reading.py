"""Where a loaded model has what is needed of it: decoder, blocks, embedding, head, and what lies between them.

For a family of the table that is known. Of any other decoder it is found by a forward pass over a few tokens and
watching which modules take part; `deepspec.target.proof` holds what was found against the model's own outputs.

Legend: T tokens, D hidden size, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepspec.errors import TargetError
from deepspec.families import TargetShape, read

PROBE = 12
"""Tokens of the forward pass."""

_SNAP = 5e-3
"""Relative distance within which a measured factor is one that the config names."""

_SEEN = 0.1
"""Relative distance of logits above which a position was told something new; rounding in bf16 gives 0.02."""

_PROPORTIONAL = 2e-2
"""Relative rest within which one state is a multiple of another; bf16 rounds by 0.004."""

_PASTS = ("past_key_values", "cache_params", "state", "cache")
"""What models call their memory, in arguments and outputs; the last one since transformers 5.24."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a model is read."""

    decoder: nn.Module
    """Takes token ids, gives the last state: embedding, blocks, final norm."""
    blocks: Sequence[nn.Module]
    """In the order in which they run; the output of each is a state of the one residual stream."""
    runs: Sequence[int] = ()
    """Of blocks that run several times a token: in which of its runs, from 0, each gives its state; empty: each runs
    once."""
    head: nn.Module
    embedding_scale: float = 1.0
    """What the first block is fed, as a multiple of the embedding; 1 where it is none (learned positions, norms)."""
    logit_scale: float = 1.0
    """Logits are the head's product with the last state times this, then the softcap: part of the state as captured."""
    softcap: float | None = None


def read_model(model: Any) -> Reading:
    """Return how a model is read.

    Raises:
        TargetError: it has no head or embedding, or its blocks cannot be told.
    """
    shape = read(model.config.to_dict())
    if shape.general:
        return _find(model, shape)
    decoder = model.get_decoder()
    return Reading(
        decoder=decoder,
        blocks=tuple(decoder.layers),
        head=model.get_output_embeddings(),
        embedding_scale=shape.embedding_scale,
        softcap=shape.logit_softcap,
    )


@torch.no_grad()
def _find(model: Any, shape: TargetShape) -> Reading:
    """Return the general reading of a model.

    Raises:
        TargetError: it has no head or embedding, or its blocks cannot be told.
    """
    told = f"target of model_type {shape.top_model_type!r}"
    embedding, head = _ends(model, told)
    watched = _watch(model, head)
    _check_causal(model, watched, told)
    blocks = watched.blocks(shape.num_layers, told)
    decoder = watched.decoder(model, blocks, told)
    size = embedding.weight.shape[1]
    fed, last = _stream(watched.given[blocks.ordered[0]], size, told), watched.gave[decoder]
    logits, multiplied = watched.logits, watched.gave[head]
    if shape.logit_softcap is not None:
        logits = shape.logit_softcap * torch.atanh((logits.double() / shape.logit_softcap).clamp(-1 + 1e-12, 1 - 1e-12))
    before, after = _ratio(watched.given[head], last), _ratio(logits, multiplied)
    if before is None or after is None:
        raise TargetError(
            f"{told}: its logits are no multiple of its head's product with its last state; not supported"
        )
    if bias_of(head) is not None and abs(after - 1.0) > _SNAP:
        raise TargetError(f"{told}: its logits are {after:g} times what its head with a bias gives; not supported")
    scale = _ratio(fed, embedding.weight[watched.ids])
    factors = _named(model.config.get_text_config().to_dict(), size)
    return Reading(
        decoder=decoder,
        blocks=blocks.ordered,
        runs=blocks.runs,
        head=head,
        embedding_scale=1.0 if scale is None else snapped(scale, factors),
        logit_scale=snapped(before * after, factors),
        softcap=shape.logit_softcap,
    )


def memory_name(model: nn.Module) -> str:
    """Return what a model calls its memory, as argument and output; empty where it has none."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in _PASTS if name in taken), "")


def _check_causal(model: Any, watched: "_Watched", told: str) -> None:
    """Refuse an encoder: half the tokens alone give it other logits."""
    half = PROBE // 2
    alone, whole = model(input_ids=watched.ids[:, :half], use_cache=False).logits, watched.logits[:, :half]
    if float((alone - whole).norm()) > _SEEN * float(whole.norm()):
        raise TargetError(f"{told}: a position sees what stands to its right, as in an encoder; wanted a decoder")


def _ends(model: Any, told: str) -> tuple[Any, Any]:
    """Return embedding and head of a model.

    Raises:
        TargetError: one is missing, or they are of other sizes than each other.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None:
        raise TargetError(f"{told} has no head: it gives states and no logits; wanted a causal language model")
    if embedding is None or not hasattr(embedding, "weight") or not hasattr(head, "weight"):
        raise TargetError(f"{told}: its embedding or head is no matrix over the vocabulary; not supported")
    if embedding.weight.shape != head.weight.shape:
        sizes = f"{tuple(embedding.weight.shape)} and {tuple(head.weight.shape)}"
        raise TargetError(f"{told}: embedding and head are {sizes}; a draft shares both and wants them alike")
    return embedding, head


def bias_of(head: Any) -> Tensor | None:
    """Return a head's bias, `(V,)`; None where it has none, or one of zeros, as far as it is in memory."""
    bias: Tensor | None = getattr(head, "bias", None)
    return bias if bias is not None and (bias.is_meta or bool((bias != 0).any())) else None


def _ratio(one: Tensor, other: Tensor) -> float | None:
    """Return the factor between two tensors; None where one is no multiple of the other."""
    if one.shape != other.shape:
        return None
    first, second = one.double().flatten(), other.to(one.device).double().flatten()
    norm = float(second.dot(second))
    factor = float(first.dot(second)) / norm if norm > 0 else 0.0
    rest = float((first - factor * second).norm()) / max(float(first.norm()), 1e-30)
    return factor if factor > 0 and rest <= _PROPORTIONAL else None


def snapped(factor: float, named: Sequence[float]) -> float:
    """Return the factor that a config names where the measured one is that but for rounding."""
    nearest = min((1.0, *named), key=lambda value: abs(value / factor - 1.0))
    return nearest if abs(nearest / factor - 1.0) <= _SNAP else factor


def _named(config: Mapping[str, Any], size: int) -> list[float]:
    """Return the numbers of a config, what they divide, and √D: where a factor can come from."""
    found = [float(v) for v in config.values() if isinstance(v, int | float) and not isinstance(v, bool) and v > 0]
    return [*found, *(1 / value for value in found), *(value / size for value in found), size**0.5]


def _stream(state: Tensor, size: int, told: str) -> Tensor:
    if state.shape != (1, PROBE, size):
        raise TargetError(
            f"{told}: its blocks carry states of shape {tuple(state.shape)}, the head reads {(1, PROBE, size)}: "
            "several residual streams, or another width; not supported"
        )
    return state


class _Blocks(NamedTuple):
    """A list of a model's, and what `Reading` says of its blocks."""

    listed: nn.ModuleList
    ordered: Sequence[nn.Module]
    runs: Sequence[int] = ()


@dataclass(kw_only=True)
class _Watched:
    """What one forward pass showed."""

    ids: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[nn.Module] = field(default_factory=list)
    """Modules in the order in which they began."""
    given: dict[nn.Module, Tensor] = field(default_factory=dict)
    """The first state that a module was given."""
    gave: dict[nn.Module, Tensor] = field(default_factory=dict)
    read_ids: set[nn.Module] = field(default_factory=set)
    """Modules that were given the token ids."""
    lists: dict[nn.ModuleList, str] = field(default_factory=dict)

    def blocks(self, layers: int, told: str) -> _Blocks:
        """Return the longest list of modules that ran one after the other, each once.

        Where blocks ran several times a token the config counts either the blocks, and the last run of each gives its
        state, or all their runs, and each of them does.

        Args:
            layers: how many the config counts.
            told: what target it is.

        Raises:
            TargetError: there is no such list, or the config counts neither.
        """
        last = {module: place for place, module in enumerate(self.calls)}
        ran = [each for each in self.lists if len(each) and all(block in self.given for block in each)]
        plain = [each for each in ran if sorted(each, key=last.__getitem__) == list(each)]
        once = [each for each in plain if all(self.calls.count(block) == 1 for block in each)]
        if once:
            longest = max(once, key=len)
            return _Blocks(longest, tuple(longest))
        counted = next((each for each in plain if len(each) == layers), None)
        if counted is not None:
            return _Blocks(counted, tuple(counted), tuple(self.calls.count(block) - 1 for block in counted))
        outer = [each for each in ran if not any(self._inside(each, other) for other in ran)]
        runs = [module for module in self.calls if any(module in set(each) for each in outer)]
        if len(runs) == layers:
            return _Blocks(outer[0], tuple(runs), tuple(runs[:place].count(block) for place, block in enumerate(runs)))
        again = f"its blocks run {len(runs)} times a token, its config counts {layers} layers"
        why = again if len(set(runs)) < len(runs) else "no list of blocks runs from first to last"
        raise TargetError(f"{told}: {why}; not supported")

    def _inside(self, blocks: nn.ModuleList, other: nn.ModuleList) -> bool:
        return self.lists[blocks].startswith(f"{self.lists[other]}.")

    def decoder(self, model: nn.Module, blocks: _Blocks, told: str) -> nn.Module:
        """Return the innermost module around the blocks that reads token ids, and is not the model itself."""
        name = self.lists[blocks.listed]
        while "." in name:
            name = name.rpartition(".")[0]
            module = model.get_submodule(name)
            if module in self.read_ids and module in self.gave:
                return module
        raise TargetError(f"{told}: no part of it gives the last state without the logits; not supported")


def _watch(model: Any, head: nn.Module) -> _Watched:
    """Return what takes part in a forward pass over tokens from all over the vocabulary."""
    ids = probe_ids(model)
    watched = _Watched(ids=ids)
    lists = {module: name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    watched.lists = lists
    inner = {block for blocks in lists for block in blocks}
    outer = {model.get_submodule(name) for path in lists.values() for name in _above(path)}
    with ExitStack() as hooks:
        for module in {*inner, *outer, head}:
            hooks.callback(module.register_forward_pre_hook(_before(watched), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(_after(watched)).remove)
        watched.logits = model(input_ids=ids, use_cache=False).logits
    return watched


def probe_ids(model: Any) -> Tensor:
    """Return `(1, PROBE)` tokens from all over the vocabulary."""
    weight = model.get_input_embeddings().weight
    return torch.linspace(1, len(weight) - 1, PROBE, device=weight.device).long()[None]


def _above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _before(watched: _Watched) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        watched.calls.append(module)
        if any(isinstance(each, Tensor) and each is watched.ids for each in (*args[:1], kwargs.get("input_ids"))):
            watched.read_ids.add(module)
        state = first_state(given_values(args, kwargs))
        if state is not None:
            watched.given.setdefault(module, state)

    return hook


def _after(watched: _Watched) -> Any:
    def hook(module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
        state = first_state(output_values(result))
        if state is not None:
            watched.gave[module] = state

    return hook


def given_values(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """Return what a module is given, its states first."""
    return (*args, kwargs.get("hidden_states"), *kwargs.values())


def output_values(result: Any) -> Sequence[Any]:
    """Return what a module gave, as values in order."""
    if isinstance(result, Mapping):
        return tuple(result.values())
    return result if isinstance(result, tuple | list) else (result,)


def first_state(values: Sequence[Any]) -> Tensor | None:
    """Return the first tensor of states, `(B, T, …)` in floating point, among what a module takes or gives."""
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim() >= 3), None)
