"""States in a form of the model's own: taken apart and put together, and batches that give what `generate` gives."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.errors import TargetError
from deepspec.kv import own_states, state_reader
from deepspec.kv.own_states import OwnStates, own_memory
from deepspec.kv.states import StateCache
from deepspec.proposers.propose import NoProposer, Proposer
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.target.load import Target
from deepspec.target.reading import memory_name
from tests.given.drafts import pairs
from tests.given.targets import zoo

NEW = 12
Shape = tuple[int, ...]


def target_of(model_type: str) -> Target:
    model = zoo.build(model_type).requires_grad_(False)
    return Target(folder=Path("tiny"), model=model, tokenizer=None, stop_ids=frozenset())


def memory_of(model_type: str) -> tuple[OwnStates | None, type[StateCache]]:
    target = target_of(model_type)
    return own_memory(target, memory_name(target.decoder))


def generated(target: Target, prompt: list[int]) -> list[int]:
    """Return what transformers itself makes of a prompt."""
    ids = torch.tensor([prompt])
    out = target.model.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


def memory(*rows: float) -> SimpleNamespace:
    """Return a memory of rows, each of which has one number: behind each other, and of two streams above each other."""
    return SimpleNamespace(
        by_layer={0: (torch.tensor(rows)[:, None],), 1: [torch.tensor([rows, [10 * row for row in rows]])]},
        taps=torch.tensor([[7.0], [8.0]]),
        count=torch.tensor([5, 6]),
        last=torch.tensor(rows),
        name="x",
    )


def test_a_memory_is_its_tensors_by_row_and_the_rest_stays() -> None:
    """Two streams, two taps of a filter and two counters are none of two rows."""
    past = memory(1, 2)
    own = OwnStates({2: past, 3: memory(1, 2, 3)})
    states = own.taken(past)
    assert {key: value.tolist() for key, value in states.items()} == {
        ("own", 0, 0): [[1.0], [2.0]],
        ("own", 1, 0): [[1.0, 10.0], [2.0, 20.0]],
        ("own", 4, 0): [1.0, 2.0],
    }
    given = own.given({key: value[1:] * 3 for key, value in states.items()})
    assert (given.by_layer[0][0].tolist(), given.by_layer[1][0].tolist()) == ([[6.0]], [[6.0], [60.0]])
    assert (given.last.tolist(), given.taps.tolist()) == ([6.0], [[7.0], [8.0]])
    assert (given.count.tolist(), given.name) == ([5, 6], "x")
    assert past.by_layer[0][0].tolist() == [[1.0], [2.0]]
    assert own.given({}) is None


@pytest.mark.parametrize(
    ("few", "many", "told"),
    [
        (
            [(4, 5)],
            [(6, 5)],
            r"tensor 0 .* is \(4, 5\) behind 2 rows and \(6, 5\) behind 3 rows; wanted one axis that is",
        ),
        ([(2,), (2, 2)], [(3,), (3, 3)], r"tensor 1 .* is \(2, 2\) behind 2 rows and \(3, 3\) behind 3 rows"),
        ([(2, 4)], [(3, 6)], r"tensor 0 .* is \(2, 4\) behind 2 rows and \(3, 6\)"),
        ([(2,)], [(2, 1)], r"tensor 0 .* is \(2,\) behind 2 rows and \(2, 1\)"),
        ([(2, 4)] * 2, [(3, 4)] * 3, r"the tensors of .* are 2 behind 2 rows and 3 behind 3 rows; wanted as many"),
    ],
    ids=["rows times heads", "both axes", "another axis grows too", "another axis", "more tensors"],
)
def test_a_memory_whose_rows_cannot_be_told_is_refused_by_name(few: list[Shape], many: list[Shape], told: str) -> None:
    with pytest.raises(TargetError, match=told):
        OwnStates({2: [torch.zeros(shape) for shape in few], 3: [torch.zeros(shape) for shape in many]})


def with_taps(real: Callable[..., Any], axis: int) -> Callable[..., Any]:
    """Return an `observe` under which RWKV's memory has its rows on an axis, and two taps beside them."""

    def observe(reading: Any, ids: torch.Tensor, layers: Any, **inputs: Any) -> Any:
        if inputs.get("state") is not None:
            inputs["state"] = [each.movedim(axis, 0).contiguous() for each in inputs["state"][1:]]
        states, last, told = real(reading, ids, layers, **inputs)
        if told.get("state") is not None:
            told = {**told, "state": [torch.zeros(2, 3), *(each.movedim(0, axis) for each in told["state"])]}
        return states, last, told

    return observe


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_of_two_is_not_taken_for_two_rows(monkeypatch: pytest.MonkeyPatch, axis: int) -> None:
    """If it were, the trial would fail, and one row be read after the other."""
    for module in (own_states, state_reader):
        monkeypatch.setattr(module, "observe", with_taps(module.observe, axis))
    target, prompts = target_of("rwkv"), [[5, 6], [7, 8, 9], [14, 15, 16]]
    rows = TargetRows(target, ())
    assert rows.way == "states"
    decoder = Decoder(rows, NoProposer(), Settings(max_new_tokens=NEW, stop=False), frozenset(), 2)
    found = decoder.decode([Prompt(sample_id=str(row), ids=prompt) for row, prompt in enumerate(prompts)])
    assert {each.sample_id: list(each.tokens) for each in found} == {
        str(row): generated(target, prompt) for row, prompt in enumerate(prompts)
    }


def test_a_memory_whose_rows_cannot_be_told_is_read_a_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> OwnStates:
        raise TargetError("no axis is the rows")

    monkeypatch.setattr(own_states, "OwnStates", refused)
    assert TargetRows(target_of("rwkv"), ()).way == "chunks"


def test_what_a_model_wants_for_its_memory_is_found_by_asking_it() -> None:
    own, kind = memory_of("rwkv")
    assert own is not None
    assert (own.alone, kind) == (True, StateCache)
    own, _ = memory_of("xlstm")
    assert own is not None
    assert not own.alone
    own, kind = memory_of("minimax")
    assert own is None
    assert [each.__name__ for each in kind.__mro__[1:]][:1] == ["StateCache"]
    assert "MiniMaxCache" in [each.__name__ for each in kind.__mro__]
    assert memory_of("mamba") == (None, StateCache)


@pytest.mark.parametrize("model_type", ["rwkv", "xlstm", "minimax"])
@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.parametrize("batch", [5, 2])
def test_ragged_rows_together_give_what_the_model_generates_for_each(
    model_type: str, drafted: bool, batch: int
) -> None:
    """Rows end at different times, at a token of another's answer; of two, their places go to the next prompts."""
    target, prompts = (
        target_of(model_type),
        [[5, 6], [7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [17, 18], [3, 20, 21, 22]],
    )
    whole = [generated(target, prompt) for prompt in prompts]
    stop = whole[0][4]
    wanted = [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in whole]
    assert len({len(answer) for answer in wanted}) > 1
    answers = {prompt[1]: prompt[1:] + answer for prompt, answer in zip(prompts, whole, strict=True)}
    proposer: Proposer = pairs.Oracle(answers) if drafted else NoProposer()
    rows = TargetRows(target, proposer.layers)
    assert rows.way == "states"
    decoder = Decoder(rows, proposer, Settings(max_new_tokens=NEW), frozenset({stop}), batch)
    given = [Prompt(sample_id=str(row), ids=prompt) for row, prompt in enumerate(prompts)]
    found = {each.sample_id: list(each.tokens) for each in decoder.decode(given)}
    assert [found[str(row)] for row in range(len(prompts))] == wanted
