"""Targets whose blocks run several times a token: which of its runs gives a block's state."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deepspec.errors import TargetError
from deepspec.families import read
from deepspec.target.capture import capture
from deepspec.target.layers import EMBEDDING
from deepspec.target.proof import prove
from deepspec.target.reading import PROBE, Reading, probe_ids, read_model
from tests.given.targets import zoo

LOOPED = {
    # of four blocks, as the config counts them, the two in the middle run twice: states of the last run
    "dory": ((0, 1, 1, 0), (0, 1, 4, 5, 6)),
    # two stacks of a block each; the config counts their runs: low, low, low, high, and that again
    "hrm_text": ((0, 1, 2, 0, 3, 4, 5, 1), tuple(range(9))),
}
"""Type -> `Reading.runs`, and where transformers tells embedding and blocks among its states."""


def built(model_type: str) -> tuple[Any, Reading]:
    model = zoo.build(model_type).requires_grad_(False)
    return model, read_model(model)


@pytest.mark.parametrize("model_type", LOOPED)
def test_a_block_gives_the_state_of_its_run(model_type: str) -> None:
    model, reading = built(model_type)
    runs, places = LOOPED[model_type]
    assert tuple(reading.runs) == runs
    layers = [EMBEDDING, *range(len(runs) - 1)]
    states, last = capture(reading, probe_ids(model), layers)
    told = model(probe_ids(model), output_hidden_states=True, use_cache=False)
    assert len(told.hidden_states) == places[-1] + 1
    for layer, ours, place in list(zip(layers, states.chunk(len(layers), -1), places, strict=False))[1:]:
        torch.testing.assert_close(ours, told.hidden_states[place], msg=f"layer {layer}")
    assert states.shape[:2] == (1, PROBE)
    torch.testing.assert_close(reading.head(last), told.logits)
    prove(model, reading, read(model.config.to_dict()))


def test_runs_that_are_not_one_behind_the_other_are_caught() -> None:
    """The last run of the second block is behind the first one of the third."""
    model, reading = built("dory")
    with pytest.raises(TargetError, match=r"states: .* places \[0, 1, 4, 3, 6\]"):
        prove(model, replace(reading, runs=(0, 1, 0, 0)), read(model.config.to_dict()))


def test_a_count_that_is_neither_of_blocks_nor_of_runs_is_refused() -> None:
    model, _ = built("hrm_text")
    model.config.num_hidden_layers = 5
    with pytest.raises(TargetError, match="run 8 times a token, its config counts 5 layers"):
        read_model(model)
