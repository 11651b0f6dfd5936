"""An engine under load, with the faults that real ones have. Nothing here depends on how fast it is."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from deepspec.errors import EngineError, SpecError
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import UnderLoad
from deepspec.serving import levels, measure
from deepspec.serving.check import ServedShape
from deepspec.serving.client import Request, ServedAnswer
from deepspec.serving.figure import by_load
from deepspec.serving.levels import EnginePatience, Load, closed, opened
from deepspec.serving.measure import ServedSubject, under_load, with_settings
from tests.given.engines.streaming import Fake, serving
from tests.given.heard import Heard
from tests.serving.test_check import known

OPTIONS = ServeOptions(loads=(1, 2), requests=4, max_tokens=9)


@pytest.fixture(autouse=True)
def _no_client_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes the client late: that it is told has tests of its own."""
    monkeypatch.setattr(levels, "BUSY", 100.0)
    monkeypatch.setattr(levels, "LATE", 100.0)


@contextmanager
def subject(fake: Fake, plain: Fake | None = None, accepted: int = 1, **changes: Any) -> Iterator[ServedSubject]:
    alone = plain or Fake(drafts=False)
    with serving(fake) as drafting, serving(alone) as without:
        told = {
            "drafting": drafting, "plain": without, "target": ServedShape(name="tiny", hidden_size=8), "slots": 3,
            "shares": (0.5, 0.2, 0.1), "prompts": {None: [[5, 6], [7]], 40: [[1] * 40]},
            "known": [known(str(n), accepted, begins="a") for n in range(4)], "known_tokens": 9,
            "patience": EnginePatience(seconds=2, between_looks=0.01),
        }  # fmt: skip
        yield ServedSubject(**{**told, **changes})


def served(fake: Fake, loads: ServeOptions = OPTIONS, **changes: Any) -> UnderLoad:
    with subject(fake, **changes) as asked:
        return under_load(asked, loads, Heard())


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "SGLang"])
def test_every_level_tells_speed_and_what_was_accepted(kind: str) -> None:
    fake = Fake(kind=kind)
    found = served(fake)
    assert [(each.kind, each.load) for each in found.levels] == [("closed", 1), ("closed", 2)]
    for each in found.levels:
        assert each.drafting is not None
        assert each.accepted is not None
        assert each.speedup is not None
        assert (each.drafting.requests, each.drafting.tokens) == (4, 36)
        assert each.notes == ()
    first = found.levels[0].accepted
    assert first is not None
    assert first.tokens_per_round.value == pytest.approx(2.0, abs=0.05)  # a short answer keeps the load up before
    assert first.by_position == (() if kind == "llama.cpp" else pytest.approx((1.0, 0.0, 0.0), abs=0.05))
    assert found.check is not None
    assert found.check.agrees
    assert len(found.break_even) == 1
    assert [each.load for each in found.proposals] == [1, 2]
    assert by_load(found).startswith(b"\x89PNG")


def test_answers_are_as_long_as_is_wanted_and_no_prefix_is_kept() -> None:
    llama, vllm = Fake(), Fake(kind="vLLM")
    served(llama)
    assert {each["cache_prompt"] for each in llama.bodies} == {False}
    assert [each.get("ignore_eos") for each in llama.bodies[:4]] == [None] * 4  # as the evaluation decoded them
    assert {each["ignore_eos"] for each in llama.bodies[4:]} == {True}
    served(sglang := Fake(kind="SGLang"))
    assert {each["return_spec_tokens_details"] for each in sglang.bodies} == {True}
    served(vllm, OPTIONS.but(ends="natural"))
    assert len({each["cache_salt"] for each in vllm.bodies}) == len(vllm.bodies)
    assert not any("ignore_eos" in each for each in vllm.bodies)


def test_levels_of_one_length_each_have_a_break_even_of_their_own() -> None:
    found = served(Fake(), OPTIONS.but(contexts=(40,)))
    assert [each.context for each in found.levels] == [40, 40]
    assert [each.context for each in found.break_even] == [40]
    assert "40" in str(found.rows()[0])


def test_requests_that_arrive_by_chance_are_measured_too() -> None:
    found = served(Fake(), ServeOptions(rates=(200.0,), requests=5, max_tokens=9))
    (level,) = found.levels
    assert (level.kind, level.load, level.speedup) == ("open", 200.0, None)
    assert level.drafting is not None
    assert level.drafting.requests == 5


def test_counters_that_begin_anew_are_said_first() -> None:
    found = served(Fake(kind="vLLM", resets_at=6))
    assert found.levels[0].accepted is None
    assert found.warnings[0] == "At 1 requests at once: with: its counters began anew."
    assert found.levels[1].accepted is not None


@pytest.mark.parametrize("kind", ["llama.cpp", "vLLM", "SGLang"])
def test_an_engine_that_ignores_the_draft_is_said_first(kind: str) -> None:
    found = served(Fake(kind=kind, drafts=False))
    assert "drafted nothing: it ignores the draft" in found.warnings[0]
    assert found.check is None


def test_an_engine_without_counters_is_measured_and_said() -> None:
    found = served(Fake(kind="other"))
    assert "tells nothing about drafts" in found.warnings[0]
    assert found.levels[0].speedup is not None


WINDOW = "--speculative-draft-window-size 63"


@pytest.mark.parametrize("told", [None, 64])
def test_an_sglang_that_was_started_without_what_no_file_of_the_draft_says_is_said_first(told: int | None) -> None:
    found = served(Fake(kind="SGLang", options={"speculative_draft_window_size": told}), options=[WINDOW])
    assert found.warnings[0].startswith(f"SGLang 7 was started without {WINDOW}, which the draft wants")


def test_options_that_an_engine_was_started_with_or_does_not_tell_are_not_missed() -> None:
    as_wanted = Fake(kind="SGLang", options={"speculative_draft_window_size": 63})
    for fake in (as_wanted, Fake(kind="SGLang"), Fake(kind="vLLM", options={"speculative_draft_window_size": None})):
        assert "started without" not in " ".join(served(fake, options=[WINDOW]).warnings)


def test_a_gauge_of_a_window_has_no_interval_and_is_held_against_nothing() -> None:
    found = served(Fake(kind="SGLang", old=True))
    assert found.levels[0].accepted is not None
    assert found.levels[0].accepted.tokens_per_round.value == 2.5
    assert "a mean of a window only" in found.warnings[0]


def test_an_engine_that_accepts_otherwise_than_measured_here_is_said_first() -> None:
    found = served(Fake(accepts=0))  # as one does whose draft reads other layers than those it was trained on
    assert found.warnings[0].startswith("llama.cpp 7 makes 1.000 [1.000, 1.000] tokens per round of prompts on which")
    assert found.warnings[0].endswith("what it serves is not what was evaluated.")


def test_an_engine_that_serves_another_target_is_refused() -> None:
    with pytest.raises(EngineError, match="another target than the release is for"):
        served(Fake(text="b"))
    with pytest.raises(EngineError, match="another target than the release is for"):
        served(Fake(), plain=Fake(drafts=False, width=9))


def test_a_level_in_which_the_engine_stops_is_repeated_once() -> None:
    found = served(Fake(dies_at=(6,)))
    assert found.levels[0].speedup is not None
    assert found.levels[0].notes[0].startswith("with: repeated, since it stopped: engine http://127.0.0.1")
    assert found.levels[1].notes == ()


def test_a_level_in_which_the_engine_stops_again_is_marked() -> None:
    found = served(Fake(dies_at=(6, 7, 8, 9)))
    assert found.levels[0].drafting is None
    assert found.levels[0].plain is not None
    assert found.levels[0].notes[-1].startswith("with: not measured: engine http://127.0.0.1")
    assert found.levels[1].drafting is not None
    assert found.loads == (2,)


def test_an_engine_that_is_gone_is_not_waited_for_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def never(_: object, patience: EnginePatience) -> bool:
        waited.append(patience.seconds)
        return False

    monkeypatch.setattr(levels, "is_back", never)
    monkeypatch.setattr(measure, "is_back", never)
    found = served(Fake(dies_at=tuple(range(4, 99))))
    assert [each.drafting for each in found.levels] == [None, None]
    assert waited == [2, 0, 0, 0]


def test_prefixes_that_were_cached_are_told() -> None:
    assert "Prefix caching was on: " in " ".join(served(Fake(cached=1)).warnings)
    assert "Prefix caching" not in " ".join(served(Fake()).warnings)
    assert "Whether prefixes were cached is not known" in " ".join(served(Fake(kind="vLLM")).warnings)


def test_a_client_that_is_the_limit_says_so_and_is_not_taken_for_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "BUSY", 0.0)
    found = served(Fake())
    assert found.break_even == ()
    assert "with: the client was the limit (" in found.levels[0].notes[0]


def test_more_connections_than_the_machine_opens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    with pytest.raises(SpecError, match="128 requests at once need as many connections, and this machine lets a"):
        served(Fake(), ServeOptions(loads=(128,)))


def test_settings_that_are_tried_have_a_row_for_each_load() -> None:
    with subject(Fake()) as asked:
        found = with_settings(asked, OPTIONS, 2, 0.5)
    assert [(each.load, each.max_tokens, each.least) for each in found] == [(1, 2, 0.5), (2, 2, 0.5)]


def test_a_closed_loop_keeps_its_load_while_anything_counts() -> None:
    at_once: list[int] = []
    running = 0

    async def ask(request: Request, intended: float) -> ServedAnswer:
        nonlocal running
        running += 1
        at_once.append(running)
        await asyncio.sleep(0.001 * request.max_tokens)
        running -= 1
        return ServedAnswer(
            tokens=request.prompt[0], text="", intended=intended, sent=intended, arrivals=(), end=intended
        )

    requests = [Request(prompt=[n], max_tokens=4) for n in range(5)]
    found = asyncio.run(closed(ask, Load(requests=requests, at_once=3)))
    assert [each.tokens for each in found] == [0, 1, 2, 3, 4]
    assert max(at_once) == 3
    assert at_once[2:] == [3] * len(at_once[2:])


def test_in_an_open_loop_a_slow_answer_holds_nothing_back() -> None:
    order: list[int] = []

    async def ask(request: Request, intended: float) -> ServedAnswer:
        order.append(request.prompt[0])
        await asyncio.sleep(0.2 if request.prompt[0] == 0 else 0)
        order.append(-request.prompt[0])
        return ServedAnswer(tokens=1, text="", intended=intended, sent=intended, arrivals=(), end=intended)

    requests = [Request(prompt=[n], max_tokens=1) for n in range(3)]
    found = asyncio.run(opened(ask, Load(requests=requests, arrivals=(0.0, 0.01, 0.02))))
    assert order == [0, 1, -1, 2, -2, 0]
    assert found[1].intended - found[0].intended == pytest.approx(0.01)


def test_an_answer_in_one_piece_is_read_too() -> None:
    from deepspec.serving.client import _Told

    told = _Told([b'{"usage": {"completion_tokens": 9}, "choices": [{"text": "ab", "finish_reason": "stop"}]}'], [2.0])
    found = told.answer(0.0, 1.0)
    assert (found.tokens, found.text, found.latency, found.cut) == (9, "ab", 2.0, False)


def test_an_answer_says_whether_its_limit_ended_it() -> None:
    from deepspec.serving.client import _Told

    last = b'{"usage": {"completion_tokens": 2}, "choices": [{"text": "", "finish_reason": "length"}]}'
    chunks = [b'{"choices": [{"text": "a b", "finish_reason": null}]}', last, b"[DONE]"]
    assert _Told(chunks, [1.0, 2.0, 2.0]).answer(0.0, 0.5).cut


def test_options_name_each_load_once() -> None:
    with pytest.raises(ValueError, match="do not ascend"):
        ServeOptions(loads=(2, 1))


@pytest.mark.filterwarnings("error")
def test_one_engine_alone_tells_no_speed_up_and_is_drawn_all_the_same() -> None:
    with subject(Fake()) as asked:
        found = under_load(replace(asked, plain=None), OPTIONS, Heard())
    assert [each.plain or each.speedup for each in found.levels] == [None, None]
    assert "No break-even load is told" in found.break_even_text()
    assert found.plain_engine is None
    assert by_load(found).startswith(b"\x89PNG")
