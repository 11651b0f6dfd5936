"""Passes of fixed shapes: what a recorded pass replays gives what growing memories give."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deepspec.decoding import fitting
from deepspec.decoding.clock import Stopwatch
from deepspec.decoding.decode import Decoder
from deepspec.decoding.fitting import row_bytes, rows_within
from deepspec.decoding.graphs import Recorder, Replayed
from deepspec.decoding.target_rows import Passes, TargetRows, silent
from deepspec.kernels import stream_beside
from deepspec.kv.fixed import FixedCache, rows_for, span_of
from deepspec.kv.rows import RowCache
from deepspec.proposers.propose import NoProposer, Proposer, proposer_for
from deepspec.rounds.decoded import Decoded, Prompt, Settings
from deepspec.target.load import Target
from tests.decoding.test_rows import ragged, states
from tests.given.drafts import pairs
from tests.given.drafts.pairs import (
    DRAFTS,
    TARGETS,
)

CPU = torch.device("cpu")


TEMPERED = {"confidence_temperatures": (1.5, 0.7)}
CASES = [
    *(("llama", name) for name in ("plain", *DRAFTS)),
    *((family, name) for family in ("qwen3", "gemma3") for name in ("plain", "dspark", "eagle3")),
]
"""Family of the target, and draft."""


def decode(
    target: Target, proposer: Proposer, passes: Passes, batch: int, prompts: list[list[int]], **settings: Any
) -> dict[str, Decoded]:
    how = Settings(**{"max_new_tokens": 20, **settings})
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, how, target.stop_ids, batch, passes)
    asked = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(prompts)]
    return {decoded.sample_id: decoded for decoded in decoder.decode(asked)}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_fixed_shapes_give_the_rounds_of_growing_ones(family: str, name: str) -> None:
    """Rows end at different times, give their places to others, and at last leave some empty."""
    target, prompts = TARGETS[family](), pairs.prompts(7)
    draft = None if name == "plain" else pairs.draft(target, **DRAFTS[name])
    proposer = NoProposer() if draft is None else proposer_for(draft, stop_ids=target.stop_ids)
    growing = decode(target, proposer, "growing", 3, prompts)
    fixed = decode(target, proposer, "fixed", 3, prompts)
    assert {key: row.tokens for key, row in fixed.items()} == {key: row.tokens for key, row in growing.items()}
    for key, row in fixed.items():
        assert [each.accepted for each in row.rounds] == [each.accepted for each in growing[key].rounds]
        assert [each.proposed for each in row.rounds] == [each.proposed for each in growing[key].rounds]


def test_a_parallel_draft_runs_once_a_round_of_fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 + 1 positions at most that a round keeps and 3 mask tokens; prompts are read as ever."""
    target, prompts = pairs.target(), [each for each in pairs.prompts(6) if len(each) != 4 + 1 + 3]
    draft, widths = pairs.draft(target, **DRAFTS["peagle"]), list[tuple[int, ...]]()
    forward = draft.forward

    def noted(ids: Tensor, *rest: Any) -> Any:
        widths.append(tuple(ids.shape))
        return forward(ids, *rest)

    monkeypatch.setattr(draft, "forward", noted)
    decoder = Decoder(
        TargetRows(target, draft.config.target_layer_ids), proposer_for(draft), Settings(max_new_tokens=20),
        target.stop_ids, 2, "fixed",
    )  # fmt: skip
    found = list(decoder.decode([Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(prompts)]))
    assert sum(len(each.rounds) for each in found) > decoder.passes > 10
    rounds = [shape for shape in widths if shape[1] == 8]
    assert len(rounds) == decoder.passes
    assert len(widths) - len(rounds) <= len(prompts), "a pass for each prompt that begins alone"


@pytest.mark.parametrize("name", ["dspark", "dflash2", "xpress", "eagle3", "peagle"])
@pytest.mark.parametrize("cut", [{}, {"confidence_threshold": 0.4, **TEMPERED}])
def test_fixed_shapes_sample_what_growing_ones_sample(name: str, cut: dict[str, object]) -> None:
    target, prompts = pairs.target(), pairs.prompts(5)
    proposer = proposer_for(pairs.draft(target, **DRAFTS[name]), stop_ids=target.stop_ids)
    growing = decode(target, proposer, "growing", 5, prompts, temperature=1.0, **cut)
    fixed = decode(target, proposer, "fixed", 2, prompts, temperature=1.0, **cut)
    assert {key: row.tokens for key, row in fixed.items()} == {key: row.tokens for key, row in growing.items()}


def test_a_decoder_keeps_its_memory_for_the_next_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    target, made = pairs.target(), []
    proposer = proposer_for(pairs.draft(target, "dspark"), stop_ids=frozenset())
    rows = TargetRows(target, proposer.layers)
    fixed = rows.fixed

    def noted(*most: int) -> Any:
        made.append(most)
        return fixed(*most)

    monkeypatch.setattr(rows, "fixed", noted)
    decoder = Decoder(rows, proposer, Settings(max_new_tokens=20, stop=False), frozenset(), 2, "fixed")
    prompts = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(pairs.prompts(4))]
    first = {each.sample_id: each.tokens for each in decoder.decode(prompts)}
    assert {each.sample_id: each.tokens for each in decoder.decode(prompts)} == first
    assert made == [(2, 128)]
    long = Prompt(sample_id="long", ids=[*range(2, 46)] * 4)
    assert len(next(iter(decoder.decode([long]))).tokens) == 20
    assert made == [(2, 128), (2, 256)]


def test_a_pass_looks_at_few_positions_more_than_it_needs() -> None:
    assert [span_of(n) for n in (1, 128, 129, 512, 513, 1025, 5000)] == [128, 128, 256, 512, 640, 1280, 5120]
    assert [rows_for(n, 12) for n in (1, 2, 3, 5, 9, 12)] == [1, 2, 4, 8, 12, 12]


def test_rows_that_are_not_decoded_never_grow() -> None:
    cache = FixedCache(4, 8, CPU)
    cache.adopt(ragged())
    cache.shape(4, 8)
    assert cache.open(2).tolist() == [[1, 2], [3, 4], [0, 1], [0, 1]]
    new = states([7, 8], [9, 10], [0, 0], [0, 0])
    keys, _ = cache.update(new, new, 0)
    assert keys[:2, 0, :6, 0].tolist() == [[1, 7, 8, 0, 0, 0], [4, 5, 6, 9, 10, 0]]
    cache.advance(torch.tensor([2, 1, 2, 2]))
    assert cache.lengths.tolist() == [3, 4, 0, 0]
    assert cache.open(1, ahead=2).tolist() == [[5], [6], [2], [2]]


def test_rows_of_fixed_shapes_are_kept_replaced_and_looked_at_in_part() -> None:
    cache, fresh = FixedCache(3, 8, CPU), RowCache(1, 4, CPU)
    cache.adopt(ragged())
    fresh.open(2)
    fresh.update(states([20, 21]), states([20, 21]), 0)
    fresh.advance(2)
    cache.replace([0], fresh)
    assert cache.lengths.tolist() == [2, 3, 0]
    cache.keep([1, 0])
    cache.shape(2, 4)
    cache.open(1)
    new = states([30], [31])
    keys, _ = cache.update(new, new, 0)
    assert keys[:, 0, :, 0].tolist() == [[4, 5, 6, 30], [20, 21, 31, 0]]
    assert cache.causal_mask(window=2)[:, 0, 0].int().tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert cache.block_mask()[:, 0, 0].int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    cache.keep([1])
    assert cache.lengths.tolist() == [2, 0]


def test_as_many_rows_are_decoded_together_as_memory_holds() -> None:
    assert [rows_within(1000, row) for row in (2000, 1000, 400, 300, 1)] == [1, 1, 2, 2, 64]
    target = pairs.target()
    proposer = proposer_for(pairs.draft(target, "dspark"))
    keys, states, logits = 2 * (3 + 2) * 2 * 8, (2 + 1) * 32, (4 + 1) * 48 * 3 * 4
    wide = 3 * 48
    assert row_bytes(target, proposer, 10, 6) == (10 * keys + 6 * (keys + states + wide)) * 4 + logits
    rows = TargetRows(target, proposer.layers)
    assert rows.fitting(proposer, 10, 6) == 8
    how = Settings(max_new_tokens=8)
    prompts = [Prompt(sample_id=str(number), ids=ids) for number, ids in enumerate(pairs.prompts(3))]
    assert len(list(Decoder(rows, proposer, how, target.stop_ids, None, "fixed").decode(prompts))) == 3


def test_how_many_rows_fit_is_asked_of_memory_that_nothing_else_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later turn has longer prompts: what the turn before took is given back before it is asked what is free."""
    target, asked = pairs.target(), list[tuple[int, int, bool]]()
    rows = TargetRows(target, ())
    decoder = Decoder(rows, NoProposer(), Settings(max_new_tokens=8), target.stop_ids, None, "fixed")

    def fitting(_: Proposer, positions: int, prompt: int) -> int:
        asked.append((positions, prompt, decoder._fixed is None))
        return 2

    monkeypatch.setattr(rows, "fitting", fitting)
    for length in (10, 20, 200):
        prompts = [Prompt(sample_id=str(number), ids=[3] * length) for number in range(3)]
        assert len(list(decoder.decode(prompts))) == 3
    assert asked == [(18, 10, True), (208, 200, True)]  # 20 tokens have room where 10 had


def test_of_a_spread_target_the_fullest_card_says_how_many_rows_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 75 bytes that are free on one card 60 in 100 may be taken: four rows of 10 bytes."""
    free = {torch.device("cuda", 0): 1000, torch.device("cuda", 1): 75, torch.device("cpu"): 1}
    monkeypatch.setattr(fitting, "_free", free.get)
    monkeypatch.setattr(fitting, "row_bytes", lambda *_: 10)
    target: Any = SimpleNamespace(device=torch.device("cuda", 0), devices=frozenset(free))
    assert fitting.fitting_rows(target, NoProposer(), 1, 1) == 4


def test_work_is_done_each_time_where_nothing_records() -> None:
    done: list[int] = []
    said: list[str] = []
    work = Replayed(lambda: done.append(1), Recorder(False, said.append, torch.device("cpu")))
    for _ in range(3):
        work()
    assert done == [1, 1, 1]
    assert said == []


def test_work_is_recorded_on_the_card_that_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of the process's current card would record nothing of another one's work, and replay nothing."""
    card, entered = torch.device("cuda", 1), list[tuple[str, Any]]()

    @contextmanager
    def inside(kind: str, value: Any) -> Iterator[None]:
        entered.append((kind, value))
        yield

    for name, stand_in in {
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: "graph",
        "Stream": lambda device: ("made for", device),
        "current_stream": lambda device: ("current of", device),
        "device": lambda device: inside("device", device),
        "stream": lambda stream: inside("stream", stream),
        "graph": lambda graph, **how: inside("graph", how["stream"]),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    stream_beside.cache_clear()
    assert str(Recorder(True, silent, card).record(lambda: None)) == "graph"
    stream_beside.cache_clear()
    assert entered == [("device", card), ("stream", ("current of", card)), ("graph", ("made for", card))]


def test_a_clock_waits_for_the_card_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[Any]()
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    with Stopwatch(torch.device("cuda", 1), waits=True).time("verify"):
        pass
    assert waited == [torch.device("cuda", 1)] * 2


READS = {"item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class NothingIsAsked(TorchFunctionMode):
    """Refuses to turn tensors into numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert getattr(func, "__name__", "") not in READS, func
        return func(*args, **(kwargs or {}))


class NothingIsMoved(TorchDispatchMode):
    """Refuses to bring numbers to the device, and shapes that depend on values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        told = str(func)
        waits = (
            "_local_scalar_dense",
            "nonzero",
            "lift_fresh",
            "equal.default",
            "unique",
            "masked_select",
            "is_nonzero",
        )
        assert not any(each in told for each in waits), told
        if told.startswith("aten.index"):
            given = [each for arg in args if isinstance(arg, list | tuple) for each in arg if each is not None]
            assert not any(each.dtype == torch.bool for each in given), told
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read() -> Iterator[None]:
    """Refuse what a recorded pass may not do."""
    with NothingIsAsked(), NothingIsMoved():  # type: ignore[no-untyped-call]
        yield


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: int(x[0]),
        lambda x: bool(x.any()),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
    ],
)
@torch.inference_mode()
def test_what_a_recorded_pass_may_not_do_is_seen_on_a_cpu(reads: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError), nothing_is_read():
        reads(torch.ones(3))


@pytest.mark.parametrize(("family", "name"), CASES)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "confidence_threshold": 0.3, **TEMPERED}])
def test_a_pass_that_can_be_recorded_reads_nothing(
    family: str, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def strict(self: Replayed) -> None:
        if self._done:
            with nothing_is_read():
                self._work()
            passes.append(1)
        else:
            self._work()
            self._done = True

    monkeypatch.setattr(Replayed, "__call__", strict)
    target = TARGETS[family]()
    draft = None if name == "plain" else pairs.draft(target, **DRAFTS[name])
    proposer = NoProposer() if draft is None else proposer_for(draft, stop_ids=target.stop_ids)
    assert decode(target, proposer, "fixed", 2, pairs.prompts(2), **{"max_new_tokens": 8, **settings})
    assert passes
