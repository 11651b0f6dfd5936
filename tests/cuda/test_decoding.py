"""Replayed passes on a card: eager tokens, one read a round; what cannot be recorded is done as ever."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deepspec.decoding.decode import Decoder
from deepspec.decoding.graphs import Recorder, Replayed
from deepspec.decoding.target_rows import Passes, TargetRows
from deepspec.proposers.propose import NoProposer, Proposer, proposer_for
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.target.load import Target
from tests.given.drafts import pairs
from tests.given.drafts.pairs import DRAFTS, TARGETS
from tests.given.targets.spread import spread

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here; make test-gpu runs these")


@pytest.fixture(scope="module", autouse=True)
def full_fp32() -> Iterator[None]:
    """Tokens are the same only where sums are not rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_a_card(family: str) -> Target:
    target = TARGETS[family]()
    target.model.to("cuda")
    return target


def proposer_of(target: Target, name: str) -> Proposer:
    if name == "plain":
        return NoProposer()
    return proposer_for(pairs.draft(target, **DRAFTS[name]).to("cuda"), stop_ids=target.stop_ids)


def decoder_of(target: Target, proposer: Proposer, passes: Passes | None, batch: int, **settings: Any) -> Decoder:
    how = Settings(**{"max_new_tokens": 20, **settings})
    return Decoder(TargetRows(target, proposer.layers), proposer, how, target.stop_ids, batch, passes)


PROMPTS = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(pairs.prompts(7))]


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("name", ["plain", *DRAFTS])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "confidence_threshold": 0.3}])
def test_recorded_passes_give_the_tokens_of_eager_ones(family: str, name: str, settings: dict[str, Any]) -> None:
    target = on_a_card(family)
    proposer = proposer_of(target, name)
    eager = {e.sample_id: e for e in decoder_of(target, proposer, "growing", 3, **settings).decode(PROMPTS)}
    decoder = decoder_of(target, proposer, None, 3, **settings)
    for _ in range(2):  # the second time all passes are replayed
        recorded = {each.sample_id: each for each in decoder.decode(PROMPTS)}
        assert {key: each.tokens for key, each in recorded.items()} == {key: e.tokens for key, e in eager.items()}
    assert decoder._fixed is not None
    assert all(work.verify._graph is not None for work in decoder._fixed._works.values())


@pytest.mark.parametrize("name", ["plain", "dspark", "eagle3"])
@torch.inference_mode()
def test_a_round_reads_once_from_the_card(name: str) -> None:
    target = on_a_card("llama")
    decoder = decoder_of(target, proposer_of(target, name), None, 2, max_new_tokens=60, stop=False)
    running = decoder._begin(PROMPTS[:2], 70, 2)
    for _ in range(3):
        decoder._round(running)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            decoder._round(running)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in heard if "synchroniz" in str(each.message)]) == 1


@pytest.mark.parametrize("name", ["plain", "dspark", "eagle3"])
def test_a_target_that_lies_half_on_a_card_gives_the_tokens_of_one_that_lies_there(name: str) -> None:
    target, said = on_a_card("llama"), list[str]()
    proposer = proposer_of(target, name)
    wanted = {each.sample_id: each.tokens for each in decoder_of(target, proposer, "growing", 3).decode(PROMPTS)}
    rows = TargetRows(spread(TARGETS["llama"](), torch.device("cuda", 0)), proposer.layers, said.append)
    found = Decoder(rows, proposer, Settings(max_new_tokens=20), target.stop_ids, 3).decode(PROMPTS)
    assert {each.sample_id: each.tokens for each in found} == wanted
    assert said == ["decoding starts every kernel by itself: the target lies on several devices"]


def test_work_that_waits_for_the_card_is_not_recorded_and_that_is_said_once() -> None:
    said: list[str] = []
    recorder, value = Recorder(True, said.append, torch.device("cuda")), torch.zeros(1, device="cuda")

    def wait() -> None:
        value.add_(int(value.item() < 10))

    def add() -> None:
        value.add_(1)

    waits, adds = Replayed(wait, recorder), Replayed(add, recorder)
    for _ in range(4):
        waits()
        adds()
    assert value.item() == 8
    assert len(said) == 1
    assert "could not be recorded" in said[0]
