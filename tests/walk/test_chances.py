"""Chances under temperature, min-p, top-k and top-p, against the processors of transformers in the same order."""

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from deepspec.target_cache.facts import Sampled
from deepspec.walk.chances import LIKELIEST, chances

CASES = [
    {},
    {"top_p": 0.8},
    {"top_k": 20},
    {"min_p": 0.1},
    {"top_p": 0.8, "top_k": 20},
    {"top_p": 0.95, "top_k": 64, "min_p": 0.05},
    {"top_p": 0.3, "min_p": 0.01},
    {"top_k": 5000},
]


def wanted(logits: torch.Tensor, how: Sampled) -> torch.Tensor:
    steps = [TemperatureLogitsWarper(how.temperature)]
    steps += [MinPLogitsWarper(how.min_p)] if how.min_p else []
    steps += [TopKLogitsWarper(min(how.top_k, logits.shape[1]))] if how.top_k else []
    steps += [TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []
    for step in steps:
        logits = step(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("sharpness", [0.1, 3.0])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_chances_are_those_that_are_sampled_from(case: dict[str, float], temperature: float, sharpness: float) -> None:
    """Flat logits have a nucleus of more tokens than are sorted first; sharp ones of a few."""
    logits = sharpness * torch.randn(7, 3 * LIKELIEST, generator=torch.Generator().manual_seed(0))
    how = Sampled(temperature=temperature, **case)
    every = wanted(logits.clone(), how)
    for token in range(0, logits.shape[1], 5):
        tokens = torch.full((7,), token)
        torch.testing.assert_close(chances(logits.clone(), tokens, how), every[:, token], rtol=1e-4, atol=1e-7)
    tokens = logits.argmax(1)
    torch.testing.assert_close(chances(logits.clone(), tokens, how), every.gather(1, tokens[:, None])[:, 0])


def test_a_nucleus_by_hand() -> None:
    """0.5, 0.3, 0.2 at top_p = 0.6: the third is cut off, the others share what it had."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    found = [chances(logits.clone(), torch.tensor([n]), Sampled(temperature=1.0, top_p=0.6)).item() for n in range(3)]
    assert found == pytest.approx([0.625, 0.375, 0.0])
