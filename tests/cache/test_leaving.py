"""States leave a pass as if one thread had encoded them one after another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.cache import leaving as leaving_room
from deepspec.cache.leaving import BYTES_WAITING, LEAST_WAITING, Leaving
from deepspec.chat.template import Sample
from deepspec.errors import CaptureError
from deepspec.passes.samples import Item, supervising, to_record
from deepspec.target_cache import codec as codec_room
from deepspec.target_cache.codec import CODECS, encode, split_by_torch
from deepspec.target_cache.part import planes_of

LAYERS, WIDTH = (0, 2), 16
DEVICE = os.environ.get("DEEPSPEC_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")


def item_of(number: int, length: int) -> Item:
    mask = [place >= length // 2 and place % 5 < 3 for place in range(length)]
    ids = list(range(number, number + length))
    return Item(sample=Sample(sample_id=f"s{number}", input_ids=ids, loss_mask=mask), split="train")


def batch_of(*lengths: int, dtype: torch.dtype = torch.float32) -> tuple[list[Item], Tensor, Tensor]:
    items = [item_of(number, length) for number, length in enumerate(lengths)]
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(items), max(lengths), len(LAYERS) * WIDTH, generator=generator).to(dtype)
    return items, hidden, torch.randn(len(items), max(lengths), WIDTH, generator=generator).to(dtype)


@pytest.mark.parametrize("codec", ["bf16", "bf16-zstd", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_leaves_is_what_a_record_encodes_to(codec: str, dtype: torch.dtype) -> None:
    items, hidden, last = batch_of(9, 7, 4, dtype=dtype)
    with Leaving(codec, LAYERS, torch.device(DEVICE)) as leaving:
        found = [each.result() for each in leaving.take(items, hidden.to(DEVICE), last.to(DEVICE))]
    for item, sample, states, final in zip(items, found, hidden, last, strict=True):
        record = to_record(item, states, final)
        block = encode(CODECS[codec], planes_of(record.hidden, record.last_hidden))
        assert [piece.tobytes() for piece in sample.block] == [piece.tobytes() for piece in block]
        assert (sample.sample_id, sample.width) == (item.sample.sample_id, WIDTH)
        assert len(record.last_hidden) == len(supervising(item)) == item.last_rows


@pytest.mark.parametrize("piece", [1, 3 * WIDTH, 10**6])
def test_fp8_is_the_same_in_pieces_of_any_size(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, hidden, last = batch_of(9)
    states = planes_of(hidden[0].bfloat16(), last[0].bfloat16())
    seen = list[int]()
    scaled = codec_room._scaled

    def watched(each: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(each))
        return scaled(each)

    monkeypatch.setattr(codec_room, "PIECE", piece)
    monkeypatch.setattr(codec_room, "_scaled", watched)
    exponents, values = CODECS["fp8"].planes(states)
    whole = torch.cat(states)
    assert max(seen) <= max(1, piece // WIDTH)
    assert sum(seen) == len(whole) == len(exponents)
    block = CODECS["fp8"].packed([exponents.numpy(), values.numpy()])[0]
    near = CODECS["fp8"].decode(block, len(whole), WIDTH).float()
    assert torch.equal(near, torch.cat([_nearest(row) for row in whole.float()]).view_as(near))


def test_fp8_is_the_same_where_a_power_is_an_ulp_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a card: a value between two of e4m3 would go to the other one."""
    values = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    here = CODECS["fp8"].planes([values])
    over = torch.tensor(float("inf"))
    monkeypatch.setattr(torch, "ldexp", lambda x, n: x * torch.nextafter(torch.exp2(n.float()), over))
    assert all(torch.equal(a, b) for a, b in zip(here, CODECS["fp8"].planes([values]), strict=True))


@pytest.mark.parametrize("largest", [0.0, 1e-40, 1e-38, 1e-36, 3e38])
def test_fp8_of_rows_of_any_size_is_finite_and_near(largest: float) -> None:
    row = largest * torch.tensor([[1.0, 0.0, -0.5, 0.25]]).to(torch.bfloat16)
    block = encode(CODECS["fp8"], [row])[0]
    near = CODECS["fp8"].decode(block, 1, 4)
    assert near.isfinite().all()
    assert float((near.double() - row.double()).abs().max()) <= largest / 16 + 2.0**-135


def _nearest(row: Tensor) -> Tensor:
    """Return a row to e4m3, below 448 by a power of two."""
    power = 2.0 ** torch.ceil(torch.log2(row.abs().max() / 448))
    return (row / power).to(torch.float8_e4m3fn).float() * power


class Card:
    """Stands for a card's streams and events, and keeps what was done with them, in order."""

    def __init__(self) -> None:
        self.done = list[str]()

    def wait_stream(self, _: Any) -> None:
        self.done.append("the side waits for the pass")

    def record_event(self, event: "Card") -> "Card":
        self.done.append("an event is recorded")
        return event

    def event(self, *, blocking: bool = False) -> "Card":
        self.done.append(f"an event that lets threads {'sleep' if blocking else 'spin'}")
        return self

    def synchronize(self) -> None:
        self.done.append("a thread has waited")

    @contextmanager
    def stream(self, _: Any) -> Iterator[None]:
        self.done.append("on the side")
        yield
        self.done.append("in front again")


class States(list[Tensor]):
    """Stands for the states of a pass on a card."""

    def __init__(self, states: Tensor, card: Card) -> None:
        super().__init__(states)
        self.device, self._card = torch.device("cuda", 0), card

    def record_stream(self, _: Any) -> None:
        self._card.done.append("kept until the side is through")


def test_off_a_card_states_leave_beside_the_pass_and_threads_sleep_until_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card, (items, hidden, last) = Card(), batch_of(9)
    monkeypatch.setattr(leaving_room, "stream_beside", lambda *_: card)
    monkeypatch.setattr(leaving_room, "_sent_all", lambda left: left)
    for name, stand_in in {"current_stream": lambda _: None, "stream": card.stream, "Event": card.event}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with Leaving("bf16", LAYERS, torch.device("cpu")) as leaving:
        states: Any = States(hidden, card), States(last, card)
        (found,) = [each.result() for each in leaving.take(items, *states)]
    assert found.sample_id == items[0].sample.sample_id
    assert card.done[:5] == [
        "the side waits for the pass", "on the side", "an event that lets threads sleep", "an event is recorded",
        "in front again",
    ]  # fmt: skip
    assert sorted(card.done[5:]) == ["a thread has waited", *["kept until the side is through"] * 2]


def test_the_threads_of_a_card_have_that_card_as_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[str, torch.device]]()
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: told.append((current_thread().name[:7], card)))
    for card in (torch.device("cuda", 3), torch.device("cuda"), torch.device("cpu")):
        items, hidden, last = batch_of(9)
        with Leaving("bf16", LAYERS, card) as leaving:
            leaving.take(items, hidden, last)[0].result()
    assert set(told) == {("encoder", torch.device("cuda", 3))}


def test_planes_by_torch_are_those_by_numpy() -> None:
    """As a card makes them: the same bits in another way."""
    values = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for by_numpy, by_torch in zip(CODECS["bf16-zstd"].planes([values]), split_by_torch(values), strict=True):
        assert torch.equal(by_numpy, by_torch)


@pytest.mark.parametrize(("place", "told"), [("hidden", "layer 2"), ("last", "layer last")])
def test_a_state_that_is_not_finite_is_told_with_its_sample_and_layer(place: str, told: str) -> None:
    items, hidden, last = batch_of(9, 7)
    (hidden if place == "hidden" else last)[1, supervising(items[1])[0], -1] = float("inf")
    with Leaving("bf16", LAYERS, torch.device(DEVICE)) as leaving:
        good, bad = leaving.take(items, hidden.to(DEVICE), last.to(DEVICE))
        good.result()
        with pytest.raises(CaptureError, match=rf"sample s1.*{told}"):
            bad.result()


def test_what_waits_is_bounded_by_bytes() -> None:
    with Leaving("bf16", LAYERS, torch.device("cuda")) as leaving:  # of a card only the pool is asked here
        assert leaving.depth(1) == max(LEAST_WAITING, 2 * leaving.encoders)
        assert leaving.depth(BYTES_WAITING) == LEAST_WAITING
