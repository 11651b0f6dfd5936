"""Lossless at temperature 1: the output of speculative decoding has the target's distribution.

A tiny vocabulary makes every output countable: its share among many samples is compared with its exact probability by a
chi-squared test. The draft is random, so it proposes from a very different distribution and most of it is rejected.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.models.config import EagleNorms
from deepspec.proposers import sampling
from deepspec.proposers.propose import proposer_for
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.target.load import Target
from tests.given.drafts import pairs
from tests.given.drafts.pairs import DFLASH2, XPRESS

VOCAB = 6
LENGTH = 4
SAMPLES = 6000
PROMPT = [3, 2, 5]
WRONG = 1e-4
"""Chance that a right implementation fails one test; the seeds are fixed, so it either always does or never."""

DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark-vanilla": {"algorithm": "dspark", "markov_rank": 4},
    "dspark-gated": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "gated"},
    "dspark-rnn": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "rnn"},
    "eagle3": {"algorithm": "eagle3"},
    "peagle": {"algorithm": "peagle"},
    "mtp": {"algorithm": "mtp"},
    "dflash2": {"algorithm": "dflash2", "layout": "fill_in", **DFLASH2, "selector_top_k": 3},
    "xpress": {"algorithm": "xpress", "layout": "fill_in", **XPRESS},
    "dflash-filled": {"algorithm": "dflash", "layout": "fill_in"},
    "dspark-filled": {"algorithm": "dspark", "layout": "fill_in", "markov_rank": 4, "markov_head": "rnn"},
    "eagle3.1": {"algorithm": "eagle3", "norms": EagleNorms(fc_norm=True, norm_output=True)},
    "eagle3-normed": {"algorithm": "eagle3", "norms": EagleNorms(norm_before_fc=True, norm_before_residual=True)},
    "dspark-reduced": {"algorithm": "dspark", "markov_rank": 4, "draft_vocab_size": 3},
    "eagle3-reduced": {"algorithm": "eagle3", "draft_vocab_size": 3},
}


def exact(target: Target) -> np.ndarray:
    """Return the probability of every continuation of LENGTH tokens."""
    outputs = torch.tensor(list(product(range(VOCAB), repeat=LENGTH)))
    ids = torch.cat([torch.tensor(PROMPT).expand(len(outputs), -1), outputs], 1)
    with torch.no_grad():
        chances = target.model(ids).logits[:, len(PROMPT) - 1 : -1].double().softmax(-1)
    found: np.ndarray = chances.gather(-1, outputs[..., None]).squeeze(-1).prod(1).numpy()
    return found


def counted(target: Target, seed: int = 0, threshold: float = 0.0, **traits: Any) -> np.ndarray:
    """Return how often each continuation came out."""
    proposer = proposer_for(pairs.draft(target, **traits), stop_ids=frozenset())
    settings = Settings(max_new_tokens=LENGTH, temperature=1.0, seed=seed, confidence_threshold=threshold)
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, settings, frozenset(), batch=2000)
    counts = np.zeros(VOCAB**LENGTH)
    for decoded in decoder.decode([Prompt(sample_id=str(number), ids=PROMPT) for number in range(SAMPLES)]):
        counts[np.ravel_multi_index(decoded.tokens, (VOCAB,) * LENGTH)] += 1
    return counts


def p_value(counts: np.ndarray, chances: np.ndarray) -> float:
    """Return the chi-squared p-value, rare outputs taken together."""
    wanted = chances * counts.sum()
    rare = wanted < 5
    seen = [*counts[~rare], counts[rare].sum()]
    expected = np.array([*wanted[~rare], wanted[rare].sum()])
    return float(chisquare(seen, expected * (sum(seen) / expected.sum())).pvalue)


@pytest.fixture(scope="module")
def target() -> Target:
    return pairs.target(VOCAB, sharpness=2.0)


@pytest.mark.parametrize("name", DRAFTS)
def test_output_is_distributed_as_the_targets(target: Target, name: str) -> None:
    assert p_value(counted(target, **DRAFTS[name]), exact(target)) > WRONG


def test_a_confidence_cut_changes_nothing(target: Target) -> None:
    traits: dict[str, Any] = {
        "algorithm": "dspark",
        "markov_rank": 4,
        "confidence_head": True,
        "confidence_with_markov": True,
    }
    assert p_value(counted(target, threshold=0.3, **traits), exact(target)) > WRONG


def test_the_test_sees_a_residual_that_is_forgotten(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(proposal: sampling.Proposal, chances: torch.Tensor, accepted: torch.Tensor) -> torch.Tensor:
        return chances[torch.arange(len(accepted)), accepted]

    monkeypatch.setattr(sampling, "_rest", forgetful)
    assert p_value(counted(target, **DRAFTS["dflash"]), exact(target)) < WRONG
