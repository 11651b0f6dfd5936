"""Weights that work on one token, counted by hand."""

from collections.abc import Mapping
from typing import Any

import pytest

from deepspec.families.working import working
from deepspec.formats.tensor_heads import TensorHead

WEIGHTS = {"model.embed_tokens.weight": 100, "model.layers.0.mlp.weight": 6, "model.layers.1.mlp.weight": 6}
LOOPS: Mapping[str, Any] = {"n_input_layers": 1, "n_output_layers": 1, "n_recurrent_loops": 3}


def heads(names: Mapping[str, int]) -> dict[str, TensorHead]:
    return {name: TensorHead(dtype="F32", shape=(count,)) for name, count in names.items()}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama", "num_hidden_layers": 2}, None),
        # 4 blocks, of which 2 run three times: 8 runs, each block twice in the mean
        ({"model_type": "dory", "num_hidden_layers": 4, **LOOPS}, 100 + 2 * 12),
        ({"model_type": "dory", "num_hidden_layers": 4, **LOOPS, "n_recurrent_layers": 1}, 100 + int(1.5 * 12)),
        # 3 of 6 blocks run twice
        (
            {"num_hidden_layers": 6, "loop_layer_index_start": 1, "loop_layer_index_end": 4, "loop_num_passes": 2},
            100 + int(1.5 * 12),
        ),
        # the low stack runs 2 × 3 times, the high one twice: a block 4 times in the mean
        ({"num_hidden_layers": 16, "H_cycles": 2, "L_cycles": 3}, 100 + 4 * 12),
    ],
)
def test_a_block_works_as_often_as_it_runs(config: Mapping[str, Any], expected: int | None) -> None:
    assert working({"model_type": "llama", **config}, heads(WEIGHTS), WEIGHTS) == expected


def test_of_experts_that_go_round_the_chosen_ones_are_counted_each_time() -> None:
    """Four experts of 8 weights, one of them chosen, in blocks of which each runs twice."""
    names = {**{f"model.layers.0.mlp.experts.{expert}.weight": 8 for expert in range(4)}, "lm_head.weight": 5}
    config = {"num_hidden_layers": 1, "loop_layer_index_start": 0, "loop_layer_index_end": 1, "loop_num_passes": 2}
    chosen = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 1}
    assert working({**chosen, **config}, heads(names), names) == 5 + 2 * 8
