"""Faults over real HTTP: every row is accounted for, and a sick endpoint costs only its own share."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from deepspec.engines import dispatcher
from deepspec.errors import AnswersError, EngineError
from deepspec.regenerate import run as stage
from tests.given.engines.answering import Server, Simulated, serve
from tests.given.engines.prompts import Bench, prompt, prompts


def first(count: int, name: str) -> Callable[[int, str], str | None]:
    """Fail the first `count` row questions."""
    return lambda number, text: name if number < count else None


def only(word: str, name: str) -> Callable[[int, str], str | None]:
    """Fail the questions that hold a word."""
    return lambda number, text: name if word in text else None


def upper(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": body["messages"][-1]["content"].upper()}


def statuses(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["status"] for row in rows}


PASSING = ["500", "429", "404", "cut", "not json", "no choices", "null", "list", "html", "abort"]
PASSING += ["unknown reason", "no reason", "error in 200", "warming up"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_no_row(bench: Bench, fault: str) -> None:
    with serve(Simulated(fault=first(3, fault)), Simulated()) as (sick, well):
        rows = bench.answers(prompts(40), sick.engine.url, well.engine.url)
    assert sick.engine.faults[fault] == 3
    assert set(statuses(rows).values()) == {"success"}
    assert len(statuses(rows)) == 40


def test_a_failed_question_goes_to_another_endpoint(bench: Bench) -> None:
    with serve(Simulated(fault=first(10**9, "500")), Simulated()) as (sick, well):
        rows = bench.answers(prompts(40), sick.engine.url, well.engine.url)
    assert {row["endpoint"] for row in rows} == {f"127.0.0.1:{well.engine.port}/v1"}
    assert sick.engine.rows < 20  # the breaker keeps the questions away


def test_a_hung_endpoint_is_given_up_at_the_deadline(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "deadline", lambda max_tokens: 0.5)
    with serve(Simulated(fault=first(10**9, "hang")), Simulated()) as (hung, well):
        rows = bench.answers(prompts(40), hung.engine.url, well.engine.url)
    assert set(statuses(rows).values()) == {"success"}
    assert hung.engine.rows < 20


def test_an_endpoint_that_hangs_after_a_while_is_given_up_long_before_the_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(dispatcher, "SILENT_TIMES", 0)
    mortal = Simulated(fault=lambda number, text: "hang" if number >= 2 * dispatcher.SILENT_AFTER else None)
    with serve(mortal, Simulated()) as (hung, well):
        rows = bench.answers(prompts(200), hung.engine.url, well.engine.url)
    assert set(statuses(rows).values()) == {"success"}
    assert hung.engine.faults["hang"] > 0


def test_an_endpoint_that_is_killed_and_comes_back_works_again(bench: Bench) -> None:
    answered: list[int] = []
    with serve(Simulated(slots=2, seconds=0.02), Simulated(slots=2, seconds=0.02)) as (mortal, steady):

        def die_and_rise() -> None:
            while mortal.engine.rows < 10:
                time.sleep(0.01)
            mortal.kill()
            time.sleep(0.3)
            mortal.start()
            answered.append(mortal.engine.rows)

        doctor = threading.Thread(target=die_and_rise)
        doctor.start()
        rows = bench.answers(prompts(300), mortal.engine.url, steady.engine.url)
        doctor.join()
    assert set(statuses(rows).values()) == {"success"}
    assert len(statuses(rows)) == 300
    assert mortal.engine.rows > answered[0] + 10  # it got questions after it came back
    assert [line for line in bench.heard.lines if f"{mortal.engine.port}/v1 is down (" in line]
    assert f"127.0.0.1:{mortal.engine.port}/v1 is back" in bench.heard.lines


def test_a_refused_prompt_is_recorded_once_with_its_reason(bench: Bench) -> None:
    with serve(Simulated(fault=only("17", "400"))) as (engine,):
        rows = bench.answers(prompts(30), engine.engine.url)
    assert statuses(rows) == {f"id-{n}": "error" if n == 17 else "success" for n in range(30)}
    assert "too long" in rows[17]["error"]
    assert rows[17]["messages"] == prompt("id-17", "row 17")["messages"]
    assert len([body for body in engine.engine.row_bodies if "17" in body["messages"][0]["content"]]) == 1


def test_an_answer_that_is_no_text_costs_its_own_row_only(bench: Bench) -> None:
    """Half of a surrogate pair, as engines send it that cut an answer inside an emoji: no file can hold it."""
    with serve(Simulated(fault=only("17", "half a character"))) as (engine,):
        rows = bench.answers(prompts(30), engine.engine.url)
    assert statuses(rows) == {f"id-{n}": "error" if n == 17 else "success" for n in range(30)}
    assert "no Unicode text" in rows[17]["error"]


def test_errors_that_can_pass_hold_back_their_part_and_are_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.engines.dispatcher.ATTEMPTS", 2)
    ref = bench.publish(prompts(30))
    with serve(Simulated(fault=only("row 17", "500"))) as (engine,):
        with pytest.raises(AnswersError, match="1 of 30 rows failed"):
            bench.regenerate(ref, bench.placement(engine.engine.url))
        assert [mark.part for mark in bench.out(ref).parts()] == [0, 2]
        engine.engine.fault = lambda number, text: None
        before = engine.engine.rows
        artifact = bench.regenerate(ref, bench.placement(engine.engine.url))
        assert engine.engine.rows == before + 1
    assert artifact.counts["success"] == 30


def test_errors_that_can_pass_are_published_where_that_is_wanted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.engines.dispatcher.ATTEMPTS", 2)
    with serve(Simulated(fault=only("row 17", "500"))) as (engine,):
        artifact = bench.regenerate(bench.publish(prompts(30)), bench.placement(engine.engine.url, keep_errors=True))
    assert (artifact.counts["success"], artifact.counts["error"]) == (29, 1)
    assert artifact.counts["reasons"] == {"Error code: # - out of memory": 1}


def once(server: Server, rows: int, do: Callable[[], object]) -> None:
    """Do something as soon as an engine has answered so many rows."""

    def wait() -> None:
        while server.engine.rows < rows:
            time.sleep(0.005)
        do()

    threading.Thread(target=wait, daemon=True).start()


def test_a_run_without_any_endpoint_left_ends_and_goes_on_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.engines.patience.PATIENCE_SECONDS", 0.5)
    ref = bench.publish(prompts(200))
    with serve(Simulated(slots=1, seconds=0.01)) as (mortal,):
        once(mortal, 20, mortal.kill)
        with pytest.raises(AnswersError, match="no endpoint answered for 0 s"):
            bench.regenerate(ref, bench.placement(mortal.engine.url))
        kept = mortal.engine.rows
        mortal.start()
        artifact = bench.regenerate(ref, bench.placement(mortal.engine.url))
        assert mortal.engine.rows < kept + 200
    assert artifact.counts["success"] == 200


def test_an_endpoint_that_is_down_at_the_start_is_taken_in_later(bench: Bench) -> None:
    with serve(Simulated(slots=1, seconds=0.02), Simulated()) as (steady, late):
        late.kill()
        once(steady, 10, late.start)
        rows = bench.answers(prompts(120), steady.engine.url, late.engine.url)
    assert set(statuses(rows).values()) == {"success"}
    assert late.engine.rows > 0
    assert any("does not answer" in line for line in bench.heard.lines)


def test_nobody_there_is_an_error_that_says_where(bench: Bench) -> None:
    with serve(Simulated()) as (engine,):
        engine.kill()
        with pytest.raises(EngineError, match=f"no engine answers .127.0.0.1:{engine.engine.port}/v1 does not"):
            bench.answers(prompts(3), engine.engine.url)


def test_answers_out_of_order_end_in_the_order_of_the_prompts(bench: Bench) -> None:
    with serve(Simulated(slots=16, seconds=0.01, uneven=True, answer=upper)) as (engine,):
        rows = bench.answers(prompts(60), engine.engine.url)
    assert [row["messages"][1]["content"] for row in rows] == [f"ROW {number}" for number in range(60)]


def test_a_duplicate_id_is_asked_once_and_counted_as_skipped(bench: Bench) -> None:
    twice = [*prompts(12), prompt("id-3", "row 3"), *prompts(30)[12:]]
    with serve(Simulated()) as (engine,):
        artifact = bench.regenerate(bench.publish(twice), bench.placement(engine.engine.url))
    assert (artifact.counts["input"], artifact.counts["success"], artifact.counts["skipped"]) == (31, 30, 1)
    assert artifact.counts["reasons"] == {"the id came before": 1}
    assert engine.engine.rows == 30


def test_strange_texts_arrive_and_return_unchanged(bench: Bench) -> None:
    texts = ["row \u2028 line separator", "row 🙂 emoji", "row " + "x" * 1_000_000, "row \x00 null \x85 next line"]
    rows = [prompt(f"id-{number}", text) for number, text in enumerate(texts)]
    rows[0]["messages"].insert(0, {"role": "system", "content": ""})
    with serve(Simulated(answer=upper)) as (engine,):
        answered = bench.answers(rows, engine.engine.url)
    assert [row["messages"][-1]["content"] for row in answered] == [text.upper() for text in texts]
    assert answered[0]["messages"][0] == {"role": "system", "content": ""}


def test_an_empty_answer_is_an_answer(bench: Bench) -> None:
    with serve(Simulated(answer=lambda body: {"role": "assistant", "content": ""})) as (engine,):
        rows = bench.answers(prompts(3), engine.engine.url)
    assert statuses(rows) == {f"id-{n}": "success" for n in range(3)}
