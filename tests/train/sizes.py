"""What training a large draft takes on devices and in the host, from the library's own objects on the `meta` device.

`python -m tests.train.sizes` prints the table of docs/memory.md; `tests/train/test_sizes.py` holds it against the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from deepspec.checkpoint.new import new_draft_config
from deepspec.families import read
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.losses.chunked import CHUNK_ROWS
from deepspec.models.draft import BlockDraft
from deepspec.optimizers.muon import MasterMuon
from deepspec.optimizers.optimizer import FP32_BYTES, MasterAdamW
from deepspec.plan import presets
from deepspec.steps.ranks import Ranks
from deepspec.train.ready import MOST_AHEAD, PINNED
from deepspec.train.spec import TrainSpec

RANKS = 8
TOKENS = 4096
"""Of the longest sample."""
OPTIMIZERS: Mapping[str, Any] = {"adamw": MasterAdamW, "muon": MasterMuon}


class First(Ranks):
    """The first of eight ranks, without the others: sizes are asked of it, and nothing is sent."""

    def __init__(self) -> None:
        self.count, self.rank, self.device = RANKS, 0, torch.device("meta")

    def copy_from_first_(self, tensor: Tensor) -> Tensor:
        return tensor

    def join_shares(self, own: Tensor, flat: Tensor) -> None:
        pass


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Sizes:
    """Of one draft under one optimizer; the draft is DSpark's with the published sizes."""

    target: str = "qwen3-14b"
    optimizer: str = "adamw"

    @cached_property
    def model(self) -> BlockDraft:
        plan = presets.target(self.target)
        sizes = plan["target"]["sizes"]
        config = {
            "model_type": "qwen3", "hidden_size": sizes["hidden"], "intermediate_size": sizes["intermediate"],
            "num_attention_heads": sizes["heads"], "num_key_value_heads": sizes["kv_heads"],
            "head_dim": sizes["head_dim"], "vocab_size": sizes["vocabulary"], "num_hidden_layers": sizes["layers"],
            "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        }  # fmt: skip
        layers, mask = plan["cache"]["layers"], plan["train"]["mask_token_id"]
        with torch.device("meta"):
            return BlockDraft(new_draft_config(read(config), DraftRecipe(), layers, mask, Objective()))

    @cached_property
    def trained(self) -> int:
        """Parameters."""
        return sum(parameter.numel() for _, parameter in self.model.trainable())

    @cached_property
    def frozen(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters()) - self.trained

    @cached_property
    def stepping(self) -> Any:
        spec = TrainSpec(optimizer=self.optimizer)
        return OPTIMIZERS[self.optimizer](self.model, spec, torch.bfloat16, First())

    @cached_property
    def flat(self) -> dict[str, int]:
        """Bytes of the buffers on one of eight ranks."""
        stepping, muon = self.stepping, isinstance(self.stepping, MasterMuon)
        parts = [stepping._rest, stepping._matrices] if muon else [stepping]
        own = [value for value in stepping._rest._shares().values()] if muon else list(stepping._shares().values())
        own += list(stepping._matrices.buffers().values()) if muon else []
        return {
            "working": nbytes(*(part._working for part in parts)),
            "gradients": nbytes(*(part.gradient for part in parts)),
            "share": nbytes(*own),
        }

    @cached_property
    def states(self) -> int:
        """Bytes of the states of one sample, bf16."""
        config = self.model.config
        return TOKENS * (len(config.target_layer_ids) + 1) * config.block.hidden_size * 2

    @cached_property
    def loss(self) -> int:
        """Bytes of a chunk's logits, of the target's (at most as many rows), and of the gradient of W2; fp32."""
        vocab = self.model.lm_head.weight.shape[0]
        return FP32_BYTES * vocab * (2 * CHUNK_ROWS + self.model.config.markov_rank)

    def device(self) -> dict[str, int]:
        """Return what lies on each of eight devices between steps and in them, but for activations."""
        return {
            "frozen embedding and head, bf16": 2 * self.frozen,
            "working weights, bf16": self.flat["working"],
            "gradients, fp32": self.flat["gradients"],
            "masters and moments, fp32, an eighth": self.flat["share"],
            "states of two samples of 4096 tokens, bf16": 2 * self.states,
            "a chunk of the loss, fp32": self.loss,
        }

    def device_if_sharded(self) -> dict[str, int]:
        """Return the same for `fully_shard`: an eighth of everything that is trained, and one block gathered whole."""
        block = sum(parameter.numel() for parameter in self.model.blocks()[0].parameters())
        return {
            **self.device(),
            "working weights, bf16": self.flat["working"] // RANKS + 2 * 2 * block,
            "gradients, fp32": self.flat["gradients"] // RANKS + FP32_BYTES * block,
        }

    def start(self) -> int:
        """Return the most that a device holds before the first step: model in fp32, and the flat buffer made of it."""
        return FP32_BYTES * (self.frozen + 2 * self.trained)

    def host(self) -> dict[str, int]:
        """Return what the memory of a machine with eight ranks holds, by when."""
        return {
            "at the start: the draft in fp32, once": FP32_BYTES * (self.frozen + self.trained),
            "in steps: states read ahead, pinned, once a rank, at most": RANKS * PINNED * (MOST_AHEAD + self.states),
            "while saving: a state to be written, and the next one": 2 * self.stepping.state_bytes,
        }


def gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


def table() -> str:
    """Return the table in markdown, GB of 10⁹ bytes."""
    adamw, muon = Sizes(), Sizes(optimizer="muon")
    columns = [adamw.device(), muon.device(), adamw.device_if_sharded(), muon.device_if_sharded()]
    lines = [
        "| on each of 8 devices, GB | AdamW | Muon | AdamW, `fully_shard` | Muon, `fully_shard` |",
        "|---|---|---|---|---|",
    ]
    for name in columns[0]:
        lines.append(f"| {name} | {' | '.join(gb(column[name]) for column in columns)} |")
    sums = [sum(column.values()) for column in columns]
    lines.append(f"| sum | {' | '.join(map(gb, sums))} |")
    lines.append(f"| left of 80 for activations | {' | '.join(gb(80 * 10**9 - size) for size in sums)} |")
    lines += ["", "| in a host of 8 ranks, GB | AdamW | Muon |", "|---|---|---|"]
    one, other = adamw.host(), muon.host()
    lines += [f"| {name} | {gb(one[name])} | {gb(other[name])} |" for name in one]
    return "\n".join(lines)


if __name__ == "__main__":
    adamw = Sizes()
    print(table())
    print(adamw.trained, adamw.frozen, adamw.start(), adamw.stepping.state_bytes)
