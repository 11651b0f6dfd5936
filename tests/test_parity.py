"""The gate passes what agrees, and names what does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deepspec.errors import ParityError
from deepspec.formats.records import Record
from deepspec.models import build_draft
from deepspec.parity import check_parity
from deepspec.target.load import Target
from tests.decoding import tiny

DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark-vanilla": {"algorithm": "dspark", "markov_rank": 4},
    "dspark-gated": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "gated"},
    "dspark-rnn": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "rnn"},
    "eagle3": {"algorithm": "eagle3"},
}
TEXT = torch.tensor(tiny.prompts(10)[-1])


def cached(target: Target, layers: tuple[int, ...]) -> Record:
    """Return what a cache would store of the text."""
    hidden, last = target.capture(TEXT[None], layers)
    mask = torch.ones_like(TEXT, dtype=torch.bool)
    return Record(
        sample_id="a",
        input_ids=TEXT,
        loss_mask=mask,
        hidden=hidden[0].bfloat16(),
        last_hidden=last[0].bfloat16(),
    )


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("name", DRAFTS)
def test_forms_that_agree_pass(name: str, sliding: bool):
    target = tiny.target(sliding=sliding)
    draft = tiny.draft(target, **DRAFTS[name])
    found = check_parity(
        target, draft, TEXT, cached=cached(target, draft.config.target_layer_ids), forms={"same": draft}
    )
    assert [each.name for each in found.comparisons] == [
        "cached states",
        "cached last states",
        "stepwise states",
        "decoding form",
        "exported form same",
    ]
    assert found.passed, found.rows()


def test_layers_shifted_by_one_fail():
    target = tiny.target()
    draft = tiny.draft(target, "dflash")
    found = check_parity(target, draft, TEXT, cached=cached(target, (0, 2)))
    assert [each.name for each in found.comparisons if not each.passed] == ["cached states"]
    with pytest.raises(ParityError, match=r"cached states differ by .* first at token 0"):
        found.require()


def test_a_rope_that_is_off_by_a_little_fails():
    target = tiny.target()
    draft = tiny.draft(target, "dspark", markov_rank=4)
    rope = replace(draft.config.block.rope, theta=9000.0)
    other = build_draft(replace(draft.config, block=replace(draft.config.block, rope=rope)))
    other.load_state_dict(draft.state_dict())
    found = check_parity(target, draft, TEXT, forms={"other": other.eval()})
    assert [each.name for each in found.comparisons if not each.passed] == ["exported form other"]


def test_states_cached_from_the_wrong_place_are_located():
    target = tiny.target()
    draft = tiny.draft(target, "dflash")
    right = cached(target, draft.config.target_layer_ids)
    hidden = right.hidden.clone()
    hidden[7:] = hidden[7:].roll(1, 0)
    record = Record(
        sample_id="a", input_ids=TEXT, loss_mask=right.loss_mask, hidden=hidden, last_hidden=right.last_hidden
    )
    assert check_parity(target, draft, TEXT, cached=record).comparisons[0].position == 7
