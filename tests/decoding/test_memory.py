"""What a target remembers, of any kind: rejected tokens leave nothing behind, and rows know nothing of each other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.kv.memory import ReadingWay, read_at_once
from deepspec.kv.own_reader import OWN, OwnReader
from deepspec.kv.readers import reader_for
from deepspec.kv.row_reader import RowsReader
from deepspec.kv.state_reader import STATES, StatesReader
from deepspec.proposers.propose import NoProposer
from deepspec.rounds.decoded import Prompt, Settings
from deepspec.target.load import Target
from deepspec.target.reading import probe_ids
from tests.given.drafts import pairs
from tests.given.targets import zoo

KINDS = {
    "deepseek_v3": "rows",
    "mistral": "rows",
    "qwen3_next": "states",
    "kimi_linear": "states",
    "falcon_h1": "states",
    "lfm3": "states",
    "mamba2": "states",
    "mamba": "steps",
    "opt": "rows",
    "bloom": "chunks",
    "rwkv": "states",
    "minimax": "states",
}
"""Type -> how it has to be read: latent attention; a window for all layers; linear attention beside full attention, and
beside latent attention; state space in the same layers as attention; convolutions beside attention with and without a
window; state space alone, the older kind of which reads one token a pass; learned positions; masks of a type's own;
a memory in a form, and of a class, of a type's own."""


def target(model_type: str) -> Target:
    model = zoo.build(model_type).requires_grad_(False)
    return Target(folder=Path(model_type), model=model, tokenizer=None, stop_ids=frozenset())


@pytest.mark.parametrize("model_type", KINDS)
def test_a_target_is_read_in_the_fastest_way_that_is_right(model_type: str) -> None:
    assert TargetRows(target(model_type), ()).way == KINDS[model_type]


def test_a_family_of_the_table_is_read_by_rows_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*_: object) -> bool:
        raise AssertionError("it was tried")

    monkeypatch.setattr("deepspec.kv.readers._serves", tried)
    assert isinstance(reader_for(pairs.target(), ()), RowsReader)


@pytest.mark.parametrize(
    ("model_type", "way"),
    [
        *((name, way) for name in ("qwen3_next", "falcon_h1") for way in (*STATES, *OWN)),
        *(("mamba", way) for way in ("steps", "tokens", "whole")),
    ],
)
def test_tokens_that_are_taken_back_leave_nothing_behind(model_type: str, way: ReadingWay) -> None:
    model = target(model_type)
    ids, wrong = probe_ids(model.model)[0], probe_ids(model.model)[0].flip(0)
    reader: Any = StatesReader(model, (0,), way) if way in STATES else OwnReader(model, (0,), way)
    memory = reader.memory(2, 32)
    reader.prompts([ids[:5].tolist(), ids[:2].tolist()], memory)
    reader.behind(torch.stack([torch.cat([ids[5:6], wrong[:2]]), ids[2:5]]), memory)
    memory.advance(torch.tensor([1, 3]))
    assert memory.lengths.tolist() == [6, 5]
    reader.behind(wrong[:4].expand(2, 4), memory)
    memory.advance(0)
    states, last = reader.behind(torch.stack([ids[6:8], ids[5:7]]), memory)
    whole, whole_last = model.capture(ids[None], (0,))
    torch.testing.assert_close(states, torch.stack([whole[0, 6:8], whole[0, 5:7]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, torch.stack([whole_last[0, 6:8], whole_last[0, 5:7]]), rtol=1e-4, atol=1e-5)


def test_a_reading_that_was_never_kept_is_taken_back() -> None:
    model = target("qwen3_next")
    ids = probe_ids(model.model)
    reader = OwnReader(model, (), "chunks")
    memory = reader.memory(1, 32)
    reader.prompts([ids[0, :4].tolist()], memory)
    reader.behind(ids[:, 8:10], memory)
    _, last = reader.behind(ids[:, 4:6], memory)
    torch.testing.assert_close(last, model.capture(ids, ())[1][:, 4:6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model_type", "batch"), [("qwen3_next", 1), *((name, 3) for name in KINDS)])
def test_rows_are_independent_and_equal_to_generate(model_type: str, batch: int) -> None:
    """Rows accept 0 to 4 tokens a round, end at different times, and give their places to others."""
    model = target(model_type)
    prompts = [[size, *range(size, 2 * size)] for size in (4, 17, 9, 12)]
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    wanted = [model.model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist() for ids in prompts]
    oracle = pairs.Oracle({ids[1]: [*ids[1:], *answer] for ids, answer in zip(prompts, wanted, strict=True)})
    asked = [Prompt(sample_id=str(row), ids=ids) for row, ids in enumerate(prompts)]
    for proposer in (NoProposer(), oracle):
        decoder = Decoder(TargetRows(model, ()), proposer, Settings(max_new_tokens=12, stop=False), frozenset(), batch)
        found = {each.sample_id: each for each in decoder.decode(asked)}
        assert [list(found[str(row)].tokens) for row in range(4)] == wanted
    assert len({round_.accepted for decoded in found.values() for round_ in decoded.rounds}) >= 3


MASKS = {"gemma3": 2, "mistral": 1, "llama": 0, "qwen3_next": 1, "falcon_h1": 1, "lfm3": 2, "mamba2": 0, "mamba": 0}
"""Type -> masks of a pass: one for each kind of layer by its window; none where the model needs none of ours."""


@pytest.mark.parametrize("kind", MASKS)
def test_long_prompts_are_read_in_pieces_where_masks_take_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of at most 50 tokens: in fp32 the masks of three have room for 7 tokens a pass, of one for 21."""
    own = {"gemma3": pairs.target(sliding=True), "llama": pairs.target()}
    reader = reader_for(own.get(kind) or target(kind), (0, 1))
    prompts = [[2 + 7 * place * (row + 1) % 37 for place in range(length)] for row, length in enumerate((50, 3, 21))]
    widths = list[int]()

    def read() -> list[torch.Tensor]:
        memory = reader.memory(3, 60)
        states, last = reader.prompts(prompts, memory)
        assert memory.lengths.tolist() == [50, 3, 21]
        kept = [torch.cat([states, last], -1)[row, : len(prompt)] for row, prompt in enumerate(prompts)]
        return [*kept, *reader.behind(torch.tensor([[3, 4], [5, 6], [7, 8]]), memory)]

    whole = read()

    def watched(*of: Any) -> int:
        widths.append(read_at_once(*of))
        return widths[-1]

    monkeypatch.setattr("deepspec.kv.memory.MASK_BYTES", 7 * 3 * 50 * 4 * max(1, MASKS[kind]))
    for room in ("row_reader", "state_reader"):
        monkeypatch.setattr(f"deepspec.kv.{room}.read_at_once", watched)
    pieces = read()
    most = 7 if reader.way == "rows" else 21  # where states are kept, rows of one length are read together
    assert max(widths) == (most if MASKS[kind] else 50)
    for found, wanted in zip(pieces, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
