"""States that a model keeps in a form of its own, of which no memory of ours can stand in the place: RWKV, xLSTM.

What such a model gives as its memory is taken apart into its tensors, a row of each for a row of the batch, and put
together again: `StateCache` keeps them as it keeps all states. Another takes ours only where it is of a class of its
own: MiniMax.
"""

from collections.abc import Callable, Mapping
from copy import copy
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from deepspec.errors import TargetError
from deepspec.kv.states import StateCache, States
from deepspec.target.capture import observe
from deepspec.target.load import Target
from deepspec.target.proof import allowed, distance
from deepspec.target.reading import probe_ids

_KIND = "own"


class OwnStates:
    """A model's own memory, as states and back.

    Args:
        pasts: rows of a pass -> what it gave behind it, of two passes over as many tokens. The axis that grows with the
            rows is the rows'; a tensor that stays as it is, is a counter or the like, however long it is.

    Raises:
        TargetError: there are more tensors of more rows, or of one no axis or more than one grows with the rows.
    """

    alone = False
    """Whether a pass over one token must be of one row: some models mix rows up there."""

    def __init__(self, pasts: Mapping[int, Any]) -> None:
        """Find the tensors that have a row for each row, and where."""
        self._past, self._axes = next(iter(pasts.values())), _row_axes(pasts)

    def taken(self, past: Any) -> States:
        """Return the states of a memory that the model gave."""
        pairs = zip(self._axes, _tensors(past), strict=True)
        return {
            (_KIND, place, 0): tensor.movedim(axis, 0) for place, (axis, tensor) in enumerate(pairs) if axis is not None
        }

    def given(self, states: States) -> Any:
        """Return the model's own memory of states; None before the first token, where it makes one itself.

        What has no row for each row is a copy of what the model gave first: it may count in place.
        """
        if not states:
            return None
        places = iter(enumerate(self._axes))

        def kept(tensor: Tensor) -> Tensor:
            place, axis = next(places)
            return tensor.clone() if axis is None else states[_KIND, place, 0].movedim(0, axis).contiguous()

        return _with_tensors(self._past, kept)


def own_memory(target: Target, name: str) -> tuple[OwnStates | None, type[StateCache]]:
    """Return how a model's own memory becomes states, None where it takes ours; and of which class ours has to be.

    Args:
        target: whose model it is.
        name: what it calls its memory, in arguments and outputs.

    Raises:
        TargetError: a memory of its own cannot be told apart by rows.
    """
    ids = torch.cat([probe_ids(target.model), probe_ids(target.model).flip(1), probe_ids(target.model).roll(1, 1)])
    past = _past(target, name, ids[:2])
    if isinstance(past, Cache) or past is None:
        own = past is not None and type(past).__module__ != Cache.__module__
        return None, type(StateCache.__name__, (StateCache, type(past)), {}) if own else StateCache
    found = OwnStates({2: past, 3: _past(target, name, ids)})
    found.alone = _mixes_rows(target, name, found, ids[:2])
    return found, StateCache


def _past(target: Target, name: str, ids: Tensor) -> Any:
    """Return what a model gives as its memory behind the first three of some tokens; None where it gives none."""
    _, _, told = observe(target.reading, ids[:, :3], (), use_cache=True)
    return told.get(name) if isinstance(told, Mapping) else None


def _row_axes(pasts: Mapping[int, Any]) -> list[int | None]:
    """Return the axis of each tensor that is its rows; None of those that have none."""
    found = {rows: [tuple(tensor.shape) for tensor in _tensors(past)] for rows, past in pasts.items()}
    counts = [len(shapes) for shapes in found.values()]
    if len(set(counts)) > 1:
        told = " and ".join(f"{count} behind {rows} rows" for rows, count in zip(found, counts, strict=True))
        raise TargetError(f"the tensors of the model's own memory are {told}; wanted as many")
    each = zip(*found.values(), strict=True)
    return [_row_axis(place, dict(zip(found, shapes, strict=True))) for place, shapes in enumerate(each)]


def _row_axis(place: int, shapes: Mapping[int, tuple[int, ...]]) -> int | None:
    """Return the one axis in which two passes differ, as long as each had rows; None where they do not differ."""
    if len(set(shapes.values())) == 1:
        return None
    sizes = list(enumerate(zip_longest(*shapes.values())))
    grows = [axis for axis, (few, many) in sizes if few != many]
    if grows != [axis for axis, size in sizes if size == tuple(shapes)] or len(grows) > 1:
        told = " and ".join(f"{shape} behind {rows} rows" for rows, shape in shapes.items())
        raise TargetError(f"tensor {place} of the model's own memory is {told}; wanted one axis that is the rows")
    return grows[0]


def _mixes_rows(target: Target, name: str, own: OwnStates, ids: Tensor) -> bool:
    """Return whether one token behind each of several rows gives something else than behind each alone."""
    states = own.taken(_past(target, name, ids))
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
