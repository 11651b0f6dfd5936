"""Decoded samples held against the target's own generation: equal, parted by rounding, or wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepspec.evaluate import lossless
from deepspec.evaluate.lossless import check_lossless
from deepspec.rounds.decoded import Decoded
from deepspec.target.load import Target, load_target
from tests.given.targets import zoo
from tests.given.targets.tiny import VOCAB, write_target

PROMPT, COUNT, PLACE = (5, 6, 7), 6, 3


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return load_target(write_target(tmp_path_factory.mktemp("target")))


@pytest.fixture(scope="module")
def own(target: Target) -> Decoded:
    """What the target says alone."""
    tokens = tuple(lossless._generated(target, PROMPT, COUNT))
    assert len(tokens) == COUNT, "it does not stop"
    return Decoded(sample_id="s", prompt_tokens=len(PROMPT), tokens=tokens, finish_reason="length", rounds=())


def instead(own: Decoded, token: int) -> Decoded:
    """Return the sample with another token at a place."""
    return replace(own, tokens=(*own.tokens[:PLACE], token, *own.tokens[PLACE + 1 :]))


def ranked(target: Target, own: Decoded) -> list[int]:
    """Return the target's tokens at the place, best first."""
    read = torch.tensor([[*PROMPT, *own.tokens[:PLACE]]])
    with torch.inference_mode():
        found: list[int] = target.model(read).logits[0, -1].argsort(descending=True).tolist()
    return found


def test_the_targets_own_tokens_are_equal(target: Target, own: Decoded) -> None:
    found = check_lossless(target, [(PROMPT, own)])
    assert (found.samples, found.equal, found.passed) == (1, 1, True)


def test_another_token_is_not_lossless_and_its_place_is_told(target: Target, own: Decoded) -> None:
    best, second = ranked(target, own)[:2]
    assert best == own.tokens[PLACE]
    found = check_lossless(target, [(PROMPT, instead(own, second)), (PROMPT, own)])
    (divergence,) = found.divergences
    assert (divergence.position, divergence.tie, found.equal, found.passed) == (PLACE, False, 1, False)
    assert divergence.margin > divergence.rounding >= 0


def test_a_token_that_ties_with_the_best_is_counted_and_a_third_is_not(tmp_path: Path, own: Decoded) -> None:
    """Two tokens of which the target has one embedding are equally likely everywhere."""
    target = load_target(write_target(tmp_path))
    best, second, third = ranked(target, own)[:3]
    with torch.no_grad():
        target.model.get_output_embeddings().weight[second] = target.model.get_output_embeddings().weight[best]
    said = replace(own, tokens=tuple(lossless._generated(target, PROMPT, COUNT)))
    assert said.tokens[PLACE] == min(best, second), "of two that are equally likely it says the first"
    other = max(best, second)
    found = check_lossless(target, [(PROMPT, instead(said, other)), (PROMPT, instead(said, third))])
    tied, apart = found.divergences
    assert (tied.margin, tied.tie, apart.tie) == (0, True, False)
    assert apart.margin > max(lossless.NEAR_TIE, apart.rounding)
    assert (found.ties, found.passed) == (1, False)


@pytest.mark.parametrize(
    ("moved", "tie"),
    [(0.3, True), (0.2, False)],  # two logits of half precision, 0.25 apart
)
def test_what_half_precision_moves_is_a_tie(moved: float, tie: bool) -> None:
    near = torch.zeros(VOCAB)
    near[[4, 9]] = torch.tensor([32.5, 32.25])
    margin, rounding, found = lossless.rounded(near, near + moved, [4, 9])
    assert (margin, found) == (0.25, tie)
    assert rounding == pytest.approx(moved, abs=1e-5)


def test_a_sample_that_goes_on_where_the_target_stops_is_not_lossless(target: Target, own: Decoded) -> None:
    assert own.tokens[PLACE - 1] not in own.tokens[: PLACE - 1]
    stops = replace(target, stop_ids=frozenset({own.tokens[PLACE - 1]}))
    (divergence,) = check_lossless(stops, [(PROMPT, own)]).divergences
    assert (divergence.position, divergence.margin, divergence.tie) == (PLACE, 0.0, False)


def test_one_pass_and_a_step_give_the_same_logits(target: Target, own: Decoded) -> None:
    whole, stepped = lossless._logits(target, [*PROMPT, *own.tokens])
    assert whole.shape == (VOCAB,)
    torch.testing.assert_close(whole, stepped, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("model_type", "stepwise"), [("mamba", True), ("xlstm", True), ("openai-gpt", False)])
def test_a_step_is_read_behind_whatever_memory_a_target_has(model_type: str, stepwise: bool) -> None:
    """States of state space and of xLSTM, which models call by other names than keys and values; and none at all."""
    model = zoo.build(model_type).requires_grad_(False)
    target = Target(folder=Path("tiny"), model=model, tokenizer=None, stop_ids=frozenset())
    passes = list[int]()
    target.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    whole, stepped = lossless._logits(target, [5, 6, 7, 8, 9])
    torch.testing.assert_close(whole, stepped, atol=1e-4, rtol=0)
    assert len(passes) == (3 if stepwise else 1)
