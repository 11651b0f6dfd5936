"""Which part of a mixture's weights works on one token: of all experts those that its router chooses."""

import re
from collections.abc import Mapping
from typing import Any

from deepspec.families.general import with_defaults
from deepspec.formats.tensor_heads import TensorHead

_ALL = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_EXPERT = re.compile(r"(?:^|\.)experts\.")
"""In the names of experts that a router chooses from; those that every token passes are called `shared_experts`."""


def working(config: Mapping[str, Any], heads: Mapping[str, TensorHead], weights: Mapping[str, int]) -> int | None:
    """Return how many of a checkpoint's weights work on one token; None where all do, or it is not said.

    Args:
        config: of the text part.
        heads: every tensor of the checkpoint.
        weights: how many each of them holds.
    """
    known = with_defaults(config, str(config.get("model_type")))
    every, chosen = _counts(known)
    if every is None or chosen is None or chosen >= every:
        return None
    experts = sum(weights[name] for name, head in heads.items() if _is_expert(name, head, every))
    return sum(weights.values()) - experts * (every - chosen) // every if experts else None


def _is_expert(name: str, head: TensorHead, every: int) -> bool:
    """Return whether a tensor is of one expert, or of all of them laid upon each other."""
    return _EXPERT.search(name) is not None or (len(head.shape) == 3 and head.shape[0] == every)


def _counts(known: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return how many experts there are and how many are chosen, as a config says or, as DBRX', a part nested in it."""
    parts = (known, *(value for value in known.values() if isinstance(value, Mapping)))
    found = [(_count(part, _ALL), _count(part, _CHOSEN)) for part in parts]
    return next((each for each in found if None not in each), (None, None))


def _count(known: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    found = next((known[key] for key in keys if isinstance(known.get(key), int) and known[key] > 0), None)
    return None if found is None else int(found)
