"""States in a form of the model's own: taken apart and put together, and batches that give what `generate` gives."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.kv.own_states import OwnStates, own_memory
from deepspec.kv.states import StateCache
from deepspec.proposers.propose import NoProposer, Proposer
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.target.load import Target
from tests.given.drafts import pairs
from tests.given.targets import zoo

NEW = 12


def target_of(model_type: str) -> Target:
    model = zoo.build(model_type).requires_grad_(False)
    return Target(folder=Path("tiny"), model=model, tokenizer=None, stop_ids=frozenset())


def generated(target: Target, prompt: list[int]) -> list[int]:
    """Return what transformers itself makes of a prompt."""
    ids = torch.tensor([prompt])
    out = target.model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


def test_a_memory_is_its_tensors_by_row_and_the_rest_stays():
    past = SimpleNamespace(
        by_layer={0: (torch.tensor([[1.0], [2.0]]),), 1: [torch.tensor([[3.0], [4.0]])]},
        count=torch.tensor([7]),
        name="x",
    )
    own = OwnStates(past, 2)
    states = own.taken(past)
    assert {key: value.tolist() for key, value in states.items()} == {
        ("own", 0, 0): [[1.0], [2.0]],
        ("own", 1, 0): [[3.0], [4.0]],
    }
    given = own.given({key: value[1:] * 10 for key, value in states.items()})
    assert (given.by_layer[0][0].tolist(), given.by_layer[1][0].tolist()) == ([[20.0]], [[40.0]])
    assert (given.count.tolist(), given.name) == ([7], "x")
    assert past.by_layer[0][0].tolist() == [[1.0], [2.0]]
    assert own.given({}) is None


def test_what_a_model_wants_for_its_memory_is_found_by_asking_it():
    own, kind = own_memory(target_of("rwkv"), "state")
    assert own is not None
    assert (own.alone, kind) == (True, StateCache)
    own, _ = own_memory(target_of("xlstm"), "cache_params")
    assert own is not None
    assert not own.alone
    own, kind = own_memory(target_of("minimax"), "past_key_values")
    assert own is None
    assert [each.__name__ for each in kind.__mro__[1:]][:1] == ["StateCache"]
    assert "MiniMaxCache" in [each.__name__ for each in kind.__mro__]
    assert own_memory(target_of("mamba"), "cache_params") == (None, StateCache)


@pytest.mark.parametrize("model_type", ["rwkv", "xlstm", "minimax"])
@pytest.mark.parametrize("drafted", [False, True])
def test_ragged_rows_together_give_what_the_model_generates_for_each(model_type: str, drafted: bool):
    target, prompts = target_of(model_type), [[5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [17, 18]]
    wanted = [generated(target, prompt) for prompt in prompts]
    answers = {prompt[1]: prompt[1:] + answer for prompt, answer in zip(prompts, wanted, strict=True)}
    proposer: Proposer = pairs.Oracle(answers) if drafted else NoProposer()
    rows = TargetRows(target, proposer.layers)
    assert rows.way == "states"
    decoder = Decoder(rows, proposer, Settings(max_new_tokens=NEW, stop=False), frozenset(), len(prompts))
    given = [Prompt(sample_id=str(row), ids=prompt) for row, prompt in enumerate(prompts)]
    found = {each.sample_id: list(each.tokens) for each in decoder.decode(given)}
    assert [found[str(row)] for row in range(len(prompts))] == wanted
