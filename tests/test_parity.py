"""The gate passes what agrees, and names what does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deepspec.models.config import EagleNorms
from deepspec.models.draft import build_draft
from deepspec.parity.check import CachedStates, check_parity
from deepspec.records.batch import Record
from deepspec.target.load import Target
from tests.given.drafts import pairs
from tests.given.drafts.pairs import DFLASH2, XPRESS

NEAR = {"window": 6, "window_layers": frozenset({1})}

DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark-vanilla": {"algorithm": "dspark", "markov_rank": 4},
    "dspark-gated": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "gated"},
    "dspark-rnn": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "rnn"},
    "eagle3": {"algorithm": "eagle3"},
    "dflash2": {"algorithm": "dflash2", "layout": "fill_in", **DFLASH2},
    "xpress-shifted": {"algorithm": "xpress", **XPRESS},
    "xpress": {"algorithm": "xpress", "layout": "fill_in", **XPRESS, **NEAR, "window_form": "causal"},
    "dspark-anchored": {"algorithm": "dspark", "markov_rank": 4, **NEAR, "window_form": "anchor"},
    "dflash-filled": {"algorithm": "dflash", "layout": "fill_in"},
    "dspark-filled": {"algorithm": "dspark", "layout": "fill_in", "markov_rank": 4, "markov_head": "rnn"},
    "eagle3.1": {"algorithm": "eagle3", "norms": EagleNorms(fc_norm=True, norm_output=True)},
    "peagle": {"algorithm": "peagle"},
    "dspark-near": {"algorithm": "dspark", "markov_rank": 4, "window": 6, "window_layers": frozenset({1})},
    "dflash2-near": {"algorithm": "dflash2", "window": 4, "window_layers": frozenset({0, 1}), **DFLASH2},
    "eagle3-near": {"algorithm": "eagle3", "window": 5, "window_layers": frozenset({0})},
    "peagle-near": {"algorithm": "peagle", "window": 5, "window_layers": frozenset({0})},
    "mtp": {"algorithm": "mtp"},
    "eagle3-normed": {"algorithm": "eagle3", "norms": EagleNorms(norm_before_fc=True, norm_before_residual=True)},
}
TEXT = torch.tensor(pairs.prompts(10)[-1])


def cached(target: Target, layers: tuple[int, ...], wanted: tuple[int, ...] | None = None) -> CachedStates:
    """Return what a cache of some layers would store of the text, beside the layers that are wanted."""
    fresh = record(target, wanted or layers)
    stored = record(target, layers)
    stored = replace(stored, hidden=stored.hidden.bfloat16(), last_hidden=stored.last_hidden.bfloat16())
    return CachedStates(stored=stored, fresh=fresh, codec="bf16")


def record(target: Target, layers: tuple[int, ...]) -> Record:
    hidden, last = target.capture(TEXT[None], layers)
    mask = torch.ones_like(TEXT, dtype=torch.bool)
    return Record(sample_id="a", input_ids=TEXT, loss_mask=mask, hidden=hidden[0], last_hidden=last[0])


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("name", DRAFTS)
def test_forms_that_agree_pass(name: str, sliding: bool) -> None:
    target = pairs.target(sliding=sliding)
    draft = pairs.draft(target, **DRAFTS[name])
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


def test_layers_shifted_by_one_fail() -> None:
    target = pairs.target()
    draft = pairs.draft(target, "dflash")
    found = check_parity(target, draft, TEXT, cached=cached(target, (0, 2), draft.config.target_layer_ids))
    assert [(each.name, each.position) for each in found.comparisons if not each.passed] == [("cached states", 0)]


def test_a_window_that_is_off_by_one_fails() -> None:
    target = pairs.target()
    draft = pairs.draft(target, "dspark", markov_rank=4, window=9, window_layers=frozenset({0}))
    other = build_draft(replace(draft.config, window=8))
    other.load_state_dict(draft.state_dict())
    found = check_parity(target, draft, TEXT, forms={"other": other.eval()})
    assert [each.name for each in found.comparisons if not each.passed] == ["exported form other"]


def test_a_rope_that_is_off_by_a_little_fails() -> None:
    target = pairs.target()
    draft = pairs.draft(target, "dspark", markov_rank=4)
    rope = replace(draft.config.block.rope, theta=9000.0)
    other = build_draft(replace(draft.config, block=replace(draft.config.block, rope=rope)))
    other.load_state_dict(draft.state_dict())
    found = check_parity(target, draft, TEXT, forms={"other": other.eval()})
    assert [each.name for each in found.comparisons if not each.passed] == ["exported form other"]


def test_states_cached_from_the_wrong_place_are_located() -> None:
    target = pairs.target()
    draft = pairs.draft(target, "dflash")
    right = cached(target, draft.config.target_layer_ids)
    hidden = right.stored.hidden.clone()
    hidden[7:] = hidden[7:].roll(1, 0)
    wrong = replace(right, stored=replace(right.stored, hidden=hidden))
    assert check_parity(target, draft, TEXT, cached=wrong).comparisons[0].position == 7
