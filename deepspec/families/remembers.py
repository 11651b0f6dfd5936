"""What a config tells of a target's memory: whether setting a length takes tokens back, or they must be read again."""

import re
from collections.abc import Mapping
from typing import Any

_LIMIT = re.compile(r"window|chunk|local|index|sparse|attention_types|block_size")
_KNOWN_LIMITS = frozenset({"sliding_window", "sliding_window_pattern", "max_window_layers", "use_sliding_window"})
_NO_LIMITS = frozenset(
    {
        "num_local_experts",
        "decoder_sparse_step",
        "moe_layer_start_index",
        "moe_layer_end_index",
        "prefix_dense_sliding_window_pattern",
    }
)
"""Fields of experts, and of which layers are of which kind, whose names sound like a limit."""

_PIECES = frozenset({"mamba_chunk_size", "chunk_size", "block_size", "chunkwise_kernel", "max_inference_chunksize"})
"""Fields of layers that keep a state: how many tokens their kernels take at once."""

_LISTS = ("layer_types", "layers_block_type", "block_types")
_KIND = re.compile(r"linear|mamba|conv|recurrent|hybrid$")
_FIELD = re.compile(
    r"mamba|ssm|state_size|recurrent|lru_|rwkv|lstm|inference_state|rescale_every|conv_kernel|conv_L_cache"
)


def own_limits(config: Mapping[str, Any]) -> list[str]:
    """Return the fields that limit attention otherwise than by windows that masks of ours hold.

    Args:
        config: of the text part.
    """
    known = _KNOWN_LIMITS | _NO_LIMITS | (_PIECES if states(config) else frozenset())
    return [key for key, value in config.items() if value and _LIMIT.search(key) and key not in known]


def states(config: Mapping[str, Any]) -> list[str]:
    """Return the fields that tell of layers which keep a state instead of keys and values.

    Args:
        config: of the text part.
    """
    listed = [key for key in _LISTS if any(_KIND.search(str(kind)) for kind in config.get(key) or ())]
    return listed or [key for key, value in config.items() if value and _FIELD.search(key)]


def is_windowed(config: Mapping[str, Any]) -> bool:
    """Return whether some layers attend within a sliding window.

    Args:
        config: of the text part.
    """
    slides = bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False
    return slides or any("sliding" in str(kind) for kind in config.get("layer_types") or ())
