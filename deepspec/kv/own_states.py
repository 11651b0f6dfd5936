"""States that a model keeps in a form of its own, of which no memory of ours can stand in the place: RWKV, xLSTM.

What such a model gives as its memory is taken apart into its tensors, a row of each for a row of the batch, and put
together again: `StateCache` keeps them as it keeps all states. Another takes ours only where it is of a class of its
own: MiniMax.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from deepspec.kv.states import StateCache, States
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.proof import allowed, distance
from deepspec.target.reading import probe_ids

_KIND = "own"


class OwnStates:
    """A model's own memory, as states and back.

    Args:
        past: what it gave behind a pass over several rows.
        rows: how many: tensors without a row for each are counters and the like.
    """

    alone = False
    """Whether a pass over one token must be of one row: some models mix rows up there."""

    def __init__(self, past: Any, rows: int) -> None:
        """Find the tensors that have a row for each row."""
        self._past, self._by_rows = past, [tensor.dim() > 1 and len(tensor) == rows for tensor in _tensors(past)]

    def taken(self, past: Any) -> States:
        """Return the states of a memory that the model gave."""
        pairs = zip(self._by_rows, _tensors(past), strict=True)
        return {(_KIND, place, 0): tensor for place, (by_rows, tensor) in enumerate(pairs) if by_rows}

    def given(self, states: States) -> Any:
        """Return the model's own memory of states; None before the first token, where it makes one itself.

        What has no row for each row is a copy of what the model gave first: it may count in place.
        """
        if not states:
            return None
        places = iter(range(len(self._by_rows)))

        def kept(tensor: Tensor) -> Tensor:
            found = states.get((_KIND, next(places), 0))
            return tensor.clone() if found is None else found

        return _with_tensors(self._past, kept)


def own_memory(target: Target, name: str) -> tuple[OwnStates | None, type[StateCache]]:
    """Return how a model's own memory becomes states, None where it takes ours; and of which class ours has to be.

    Args:
        target: whose model it is.
        name: what it calls its memory, in arguments and outputs.
    """
    ids = torch.cat([probe_ids(target.model), probe_ids(target.model).flip(1)])
    _, _, told = observe(target.reading, ids[:, :3], (), use_cache=True)
    past = told.get(name) if isinstance(told, Mapping) else None
    if isinstance(past, Cache) or past is None:
        own = past is not None and type(past).__module__ != Cache.__module__
        return None, type(StateCache.__name__, (StateCache, type(past)), {}) if own else StateCache
    found = OwnStates(past, len(ids))
    found.alone = _mixes_rows(target, name, found, ids)
    return found, StateCache


def _mixes_rows(target: Target, name: str, own: OwnStates, ids: Tensor) -> bool:
    """Return whether one token behind each of several rows gives something else than behind each alone."""
    _, _, told = observe(target.reading, ids[:, :3], (), use_cache=True)
    states = own.taken(told[name])
    each = [{key: value[row : row + 1].clone() for key, value in states.items()} for row in range(len(ids))]
    apart = [
        observe(target.reading, ids[row : row + 1, 3:4], (), use_cache=True, **{name: own.given(kept)})[1]
        for row, kept in enumerate(each)
    ]
    try:
        _, last, _ = observe(target.reading, ids[:, 3:4], (), use_cache=True, **{name: own.given(states)})
    except RuntimeError:
        return True
    return not distance(last, torch.cat(apart)) <= allowed(last.dtype)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a memory, in their order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _with_tensors(value, note)
    return found


def _with_tensors(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """Return a memory with other tensors, asked for in their order: of an object, those that it holds."""
    if isinstance(value, Tensor | Mapping | list | tuple):
        return _inside(value, of)
    found = copy(value)
    vars(found).update({key: _inside(each, of) for key, each in vars(value).items()})
    return found


def _inside(value: Any, of: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, Mapping):
        return {key: _inside(each, of) for key, each in value.items()}
    return type(value)(_inside(each, of) for each in value) if isinstance(value, list | tuple) else value
