"""Templates that print the clock: an engine on another day answers prompts of the one date of the run."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, NoReturn

import pytest

from deepspec.asking.dated import settle_date
from deepspec.asking.reader import TargetReader
from deepspec.asking.sampling import Sampling
from deepspec.chat.template import ChatTemplate
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from tests.given.engines.answering import Server, Simulated, serve
from tests.given.engines.prompts import Bench, prompt, prompts
from tests.given.targets import tiny
from tests.regenerate.test_conversation import WEATHER, with_tools

DAY, ENGINES_DAY = date(2025, 12, 24), date(2026, 11, 26)

VARIABLE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today: ' + date_string + '\n' }}" + tiny.CHATML
)
"""As Llama 3 has it. All dates are equally long."""
BARE = "{{ 'Now: ' + strftime_now('%Y-%m-%d') + '\n' }}" + tiny.CHATML
WITH_TOOLS = VARIABLE.replace("{{ 'Today: '", "{% if tools %}{{ 'Today: '").replace(
    "'\n' }}{% for", "'\n' }}{% endif %}{% for"
)


Told = Callable[..., list[Any]]
"""A template, prompts, engines, and what the sampling says -> the rows."""


@pytest.fixture
def told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Return the rows that come of prompts, with a template that the target and the engine share."""

    def regenerate(template: str, rows: list[dict[str, Any]], *engines: Server, **sampling: Any) -> list[Any]:
        bench.spec = bench.spec.but(date=DAY, sampling=bench.spec.sampling.but(**sampling))
        reader = TargetReader(tiny.tokenizer(template), "target", DAY)
        monkeypatch.setattr(TargetReader, "of", classmethod(lambda cls, target, placement, day: reader))
        return bench.answers(rows, *(engine.engine.url for engine in engines))

    return regenerate


def engine(template: str, *, heeds: bool = True, **more: Any) -> Simulated:
    """An engine with the target's template and a clock of its own."""
    chat = ChatTemplate(tiny.tokenizer(template), frozenset(), "engine")

    def render(body: Mapping[str, Any]) -> list[int]:
        kwargs = dict(body.get("chat_template_kwargs", {}))
        thinking = kwargs.pop("enable_thinking", False)
        told = {"thinking": thinking, "tools": body.get("tools"), "switches": kwargs if heeds else {}}
        return chat.prompt_ids(body["messages"], day=ENGINES_DAY, **told)

    return Simulated(render=render, **more)


def prompts_read(server: Server) -> list[str]:
    """Return the texts of the prompts that came as token ids for rows."""
    texts = [tiny.tokenizer().decode(body["prompt"]) for body in server.engine.bodies if "prompt" in body]
    return [text for text in texts if "row " in text]


def test_an_engine_that_heeds_the_templates_variable_is_told_the_date_by_it(told: Told) -> None:
    with serve(engine(VARIABLE)) as (server,):
        rows = told(VARIABLE, prompts(3), server)
    assert {row["status"] for row in rows} == {"success"}
    assert {row["date"] for row in rows} == {"2025-12-24"}
    assert not any("chat_template_kwargs" in row for row in rows)
    sent = [body["chat_template_kwargs"] for body in server.engine.row_bodies]
    assert sent == [{"enable_thinking": False, "date_string": "24 Dec 2025"}] * 3


def test_the_proof_is_made_where_the_template_prints_the_date_at_all(told: Told) -> None:
    with serve(engine(WITH_TOOLS)) as (server,):
        rows = told(WITH_TOOLS, prompts(1), server)
        assert rows[0]["date"] == "2025-12-24"
        assert server.engine.row_bodies
    with serve(engine(WITH_TOOLS, heeds=False)) as (deaf,), pytest.raises(EngineError, match="prints the date"):
        told(WITH_TOOLS, prompts(1), deaf)


@pytest.mark.parametrize(
    ("template", "more"),
    [(BARE, {}), (VARIABLE, {"heeds": False}), (VARIABLE, {"refuses": frozenset({"chat_template_kwargs"})})],
)
def test_an_engine_that_cannot_be_told_is_given_token_ids(told: Told, template: str, more: dict[str, Any]) -> None:
    """Deaf ones read as many tokens as they should: only two values of other lengths show that they print their own."""
    with serve(engine(template, takes_ids=True, **more)) as (server,):
        rows = told(template, prompts(3), server)
    assert {(row["status"], row["date"]) for row in rows} == {("success", "2025-12-24")}
    assert not server.engine.row_bodies
    assert len(prompts_read(server)) == 3
    day = "2025-12-24" if template == BARE else "24 Dec 2025"
    assert all(day in text.splitlines()[0] for text in prompts_read(server))
    assert all(row["token_ids"] == [[0, 1, 2]] for row in rows)


def test_engines_are_told_each_in_its_own_way(told: Told) -> None:
    with serve(engine(VARIABLE, slots=1), engine(VARIABLE, heeds=False, takes_ids=True, slots=1)) as (one, other):
        rows = told(VARIABLE, prompts(40), one, other)
    assert {row["status"] for row in rows} == {"success"}
    assert one.engine.row_bodies
    assert prompts_read(other)


@pytest.mark.parametrize(
    ("template", "more", "why"),
    [
        (BARE, {}, "404"),
        (VARIABLE, {"heeds": False}, "404"),
        (BARE, {"takes_ids": True, "counts_prompts": False}, "it counts 0 tokens where"),
        (BARE, {"takes_ids": True, "window": 3}, "it counts 3 tokens where"),
        (BARE, {"takes_ids": True, "refuses": frozenset({"prompt"})}, "unknown field prompt"),
        (BARE, {"takes_ids": True, "breaks_on_ids": True}, "500"),
    ],
)
def test_an_engine_that_prints_its_own_day_is_refused(
    told: Told, template: str, more: dict[str, Any], why: str
) -> None:
    with serve(engine(template, **more)) as (server,):
        with pytest.raises(EngineError, match=f"prints the date.*{why}.*chat_template without the date"):
            told(template, prompts(3), server)
        assert not server.engine.row_bodies


def test_a_date_that_the_user_gives_stands(told: Told) -> None:
    with serve(engine(VARIABLE)) as (server,):
        (row,) = told(VARIABLE, prompts(1), server, chat_template_kwargs={"date_string": "26 Jul 2024"})
    assert server.engine.row_bodies[0]["chat_template_kwargs"]["date_string"] == "26 Jul 2024"
    assert row["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}


def test_a_template_that_prints_no_date_is_told_none(told: Told) -> None:
    with serve(engine(tiny.CHATML, takes_ids=True)) as (server,):
        (row,) = told(tiny.CHATML, prompts(1), server)
    assert "date" not in row
    assert server.engine.row_bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_token_ids_leave_a_call_in_the_last_turn_as_text_and_skip_rows_that_go_on_with_one(
    told: Told,
) -> None:
    def calls(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "content": "<tool_call>{}</tool_call>"}

    last = {**prompt("last", "row 1"), "tools": WEATHER}
    with serve(engine(BARE, takes_ids=True, answer=calls)) as (server,):
        kept, skipped = told(BARE, [last, with_tools()], server)
    assert kept["status"] == "success"
    assert kept["messages"][-1] == {"role": "assistant", "content": "<tool_call>{}</tool_call>"}
    assert (skipped["status"], skipped["date"]) == ("skipped", "2025-12-24")
    assert "sent as token ids" in skipped["error"]
    assert len(prompts_read(server)) == 1


def test_an_engine_that_is_away_while_it_is_checked_is_asked_again_later() -> None:
    class Away:
        label = "away"

        async def ask_ids(self, *_: object) -> NoReturn:
            raise AskError("out of memory", "engine")

        ask_messages = ask_ids

    engine: Any = Away()
    reader = TargetReader(tiny.tokenizer(BARE), "target", DAY)
    with pytest.raises(AskError, match="out of memory"):
        asyncio.run(settle_date(engine, reader, Sampling()))
