"""Which weights work on one token, and how often: of all experts those that a router chooses, blocks as often as they
run."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from deepspec.families.general import with_defaults
from deepspec.formats.tensor_heads import TensorHead

_ALL = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_EXPERT = re.compile(r"(?:^|\.)experts\.")
"""In the names of experts that a router chooses from; those that every token passes are called `shared_experts`."""
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")
"""In the names of what lies in a block."""


def working(config: Mapping[str, Any], heads: Mapping[str, TensorHead], weights: Mapping[str, int]) -> int | None:
    """Return how many of a checkpoint's weights work on one token, each as often as it does; None where all do, once.

    None, too, where it is not said.

    Args:
        config: of the text part.
        heads: every tensor of the checkpoint.
        weights: how many each of them holds.
    """
    known = with_defaults(config, str(config.get("model_type")))
    shares, runs = _shares(known, heads), _runs(known)
    if not shares and runs == 1:
        return None
    often = {name: shares.get(name, Fraction(1)) * (runs if _BLOCK.search(name) else 1) for name in weights}
    return int(sum(weights[name] * often[name] for name in weights))


def _shares(known: Mapping[str, Any], heads: Mapping[str, TensorHead]) -> Mapping[str, Fraction]:
    """Return which share of each tensor of experts is chosen; empty where there are none, or all are."""
    every, chosen = _counts(known)
    if every is None or chosen is None or chosen >= every:
        return {}
    return {name: Fraction(chosen, every) for name, head in heads.items() if _is_expert(name, head, every)}


def _runs(known: Mapping[str, Any]) -> Fraction:
    """Return how often a block runs over one token, in the mean of all blocks: more than once in looped models."""
    layers = known.get("num_hidden_layers")
    if known.get("n_recurrent_loops"):  # Dory: blocks in the middle go round
        ends = known["n_input_layers"] + known["n_output_layers"]
        again = (known["n_recurrent_loops"] - 1) * (known.get("n_recurrent_layers") or layers - ends)
        return 1 + Fraction(again, layers)
    if known.get("loop_num_passes"):  # Inkling 2
        again = known["loop_num_passes"] - 1
        return 1 + Fraction(again * (known["loop_layer_index_end"] - known["loop_layer_index_start"]), layers)
    if known.get("H_cycles") and known.get("L_cycles"):  # HRM: two stacks alike; the low one runs L times a high one's
        return Fraction(known["H_cycles"] * (known["L_cycles"] + 1), 2)
    return Fraction(1)


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
