"""What is done by hand beside the library that does the same: the numbers of docs/adr/0025.

python -m pytest -m bench tests/benchmarks/bench_by_hand.py -s

Seconds of the processor, the least of several: other work on the machine adds to a clock, not to these. The folder of
parts is held against diskcache where that is installed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import mkldnn as public
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepspec.attention.rope import inverse_frequencies
from deepspec.families.rope import rope, rope_parameters
from deepspec.models.layout import lay_out_for_decoding
from deepspec.target_cache.fetch import BoundedFolder

pytestmark = pytest.mark.bench
PART = 64 << 20
TIMES = 5
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
}  # fmt: skip


def least(work: Callable[[], object], times: int = TIMES) -> float:
    """Return the processor's seconds of some work."""

    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(times))


def test_a_part_of_a_cache_is_read_in_place(tmp_path: Path) -> None:
    diskcache = pytest.importorskip("diskcache")
    data = np.random.default_rng(0).integers(0, 255, PART, dtype=np.uint8)
    source = tmp_path / "source"
    data.tofile(source)
    folder = BoundedFolder(tmp_path / "ours", 2 * PART)
    folder.file("part", PART, lambda path: path.hardlink_to(source))
    cache = diskcache.Cache(str(tmp_path / "theirs"), size_limit=2 * PART)

    def ours() -> int:
        path = folder.file("part", PART, lambda path: path.hardlink_to(source))
        return int(np.memmap(path, dtype=np.uint8)[:: PART // 16].sum())

    def theirs() -> int:
        return int(np.frombuffer(cache["part"], dtype=np.uint8)[:: PART // 16].sum())

    stored = least(lambda: cache.set("part", source.read_bytes()))
    assert ours() == theirs()
    print(f"\n16 values of a part of {PART >> 20} MiB: read in place {1e3 * least(ours):.2f} ms of the processor, from")
    print(
        f"diskcache {1e3 * least(theirs):.1f} ms; to put it there {1e3 * stored:.0f} ms and a second copy of its bytes"
    )


@pytest.mark.parametrize("kind", ROPES)
def test_frequencies_are_those_of_transformers(kind: str) -> None:
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters={"rope_theta": 5e5, **ROPES[kind]})
    read = rope(config.to_dict())
    ours, (theirs, factor) = inverse_frequencies(read, 128), ROPE_INIT_FUNCTIONS[kind](config, None)
    same = int((ours == theirs).sum())
    told = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope_parameters(read))
    print(f"\n{kind}: {same} of {len(ours)} frequencies are theirs to the bit, the others off by at most", end=" ")
    print(f"{float(((ours - theirs) / theirs).abs().max()):.1e} of their size")
    print(f"ours {1e6 * least(lambda: inverse_frequencies(read, 128), 50):.0f} µs,", end=" ")
    print(f"theirs with a config to ask {1e6 * least(lambda: ROPE_INIT_FUNCTIONS[kind](told, None), 50):.0f} µs")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert factor == pytest.approx(read.attention_factor)


@torch.inference_mode()
def test_packed_weights_are_read_once_for_the_rows_of_a_round() -> None:
    torch.set_num_threads(1)
    layers = [nn.Linear(576, 1536, bias=False) for _ in range(24)]  # 85 MB: more than the caches hold
    plain, published = nn.Sequential(*layers), [public.to_mkldnn(nn.Sequential(layer))[0] for layer in layers]
    packed = nn.ModuleList(nn.Linear(576, 1536, bias=False) for _ in layers)
    packed.load_state_dict({f"{n}.weight": layer.weight for n, layer in enumerate(layers)})
    lay_out_for_decoding(packed)
    print("\nµs of a product 1536 × 576 by rows: as they come | torch.utils.mkldnn | packed")
    for rows in (1, 2, 4, 8, 16):
        x = torch.randn(rows, 576)
        y = x.to_mkldnn()
        torch.testing.assert_close(packed[0](x), plain[0](x), rtol=1e-4, atol=1e-4)
        found = [
            1e6 / len(layers) * least(lambda: [layer(x) for layer in plain], 20),  # noqa: B023 - called at once
            1e6 / len(layers) * least(lambda: [layer(y).to_dense() for layer in published], 20),  # noqa: B023
            1e6 / len(layers) * least(lambda: [layer(x) for layer in packed], 20),  # noqa: B023
        ]
        print(rows, *(f"{each:.0f}" for each in found), sep=" | ")
