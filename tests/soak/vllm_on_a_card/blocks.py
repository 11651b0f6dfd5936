"""How many requests an engine that gives states holds, by vLLM's own count.

With a table of blocks for each kind of layer, as it comes, and with one for all. Run by vLLM's interpreter; prints a
JSON object: name -> [several tables, one]. Sizes are like those of the models that they are named after, with five
captured layers and the last; 40 GiB of bf16, 4,096 tokens a request.
"""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    HiddenStateCacheSpec,
    KVCacheSpec,
    SlidingWindowSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

TOKENS, BYTES, STATES = 4096, 40 << 30, 6
_COMMON = {"block_size": 16, "dtype": torch.bfloat16}


def full(heads: int, size: int) -> KVCacheSpec:
    return FullAttentionSpec(num_kv_heads=heads, head_size=size, **_COMMON)


def sliding(heads: int, size: int, window: int) -> KVCacheSpec:
    return SlidingWindowSpec(num_kv_heads=heads, head_size=size, sliding_window=window, **_COMMON)


def states(width: int) -> KVCacheSpec:
    return HiddenStateCacheSpec(num_kv_heads=STATES, head_size=width, **_COMMON)


MODELS: Mapping[str, list[KVCacheSpec]] = {
    "gemma4": [*[full(1, 512) if n % 6 == 5 else sliding(8, 256, 1024) for n in range(48)], states(3840)],
    "gpt-oss": [*[full(8, 64) if n % 2 else sliding(8, 64, 128) for n in range(24)], states(2880)],
    "mistral": [*[sliding(8, 128, 4096) for _ in range(32)], states(4096)],
    "qwen3": [*[full(8, 128) for _ in range(36)], states(2560)],
}


def config(one: bool) -> Any:
    """Return what vLLM asks of its configuration here."""
    no = SimpleNamespace(use_eagle=lambda: False, use_eagle_block_drop=lambda: False)
    no.use_multi_module_mtp = no.use_dflash = no.use_eagle
    no.method = "extract_hidden_states"
    parallel = ("decode_context", "prefill_context", "pipeline", "tensor")
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=one, max_num_batched_tokens=8192, max_num_seqs=256
        ),
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC, num_gpu_blocks_override=None,
            enable_prefix_caching=True, prefix_cache_retention_interval=None,
        ),
        parallel_config=SimpleNamespace(**{f"{name}_parallel_size": 1 for name in parallel}),
        model_config=SimpleNamespace(max_model_len=TOKENS), attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=no, kv_transfer_config=None, max_in_flight_tokens=2 * 8192, num_lookahead_tokens=0,
        num_speculative_tokens=1,
    )  # fmt: skip


def held(layers: list[KVCacheSpec], one: bool) -> float:
    """Return how many requests are held together."""
    asked = config(one)
    groups = kv_cache_utils.get_kv_cache_groups(asked, {str(n): layer for n, layer in enumerate(layers)})
    made = kv_cache_utils.get_kv_cache_config_from_groups(asked, groups, BYTES)
    return round(float(kv_cache_utils.get_max_concurrency_for_kv_cache_config(asked, made)), 1)


if __name__ == "__main__":
    print(json.dumps({name: [held(layers, one=False), held(layers, one=True)] for name, layers in MODELS.items()}))
