"""One bad row costs one row; too many of them end the run, and what was answered is kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from deepspec.asking.reader import TargetReader
from deepspec.errors import AnswersError, BadRowsError, EngineError
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompt, prompts
from tests.regenerate.test_faults import only, statuses
from tests.regenerate.test_parts import answer, failed
from tests.regenerate.test_preflight import Reader


def every(nth: int, name: str) -> Callable[[int, str], str | None]:
    """Fail every nth row by its number."""
    return lambda number, text: name if int(text.split()[1]) % nth == 0 else None


@pytest.fixture
def reading(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[TargetReader], Bench]:
    """A bench whose target is here, and counts as the simulated engine does."""

    def use(reader: TargetReader) -> Bench:
        monkeypatch.setattr(TargetReader, "of", classmethod(lambda cls, target, placement, day: reader))
        return bench

    return use


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("400", "refused"), ("filtered", "filtered"), ("half a character", "not_text"), ("list", "odd_answer")],
)
def test_a_row_that_no_run_could_answer_is_counted_by_one_word(bench: Bench, fault: str, reason: str) -> None:
    with serve(Simulated(fault=only("17", fault))) as (engine,):
        artifact = bench.regenerate(bench.publish(prompts(30)), bench.placement(engine.engine.url))
    assert (artifact.counts["success"], artifact.counts["error"]) == (29, 1)
    assert artifact.counts["bad"] == {reason: 1}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"content": "", "finish_reason": "length"}, "empty_answer"),
        ({"content": None, "finish_reason": "length"}, "empty_answer"),
        ({"content": None, "reasoning_content": "All of it."}, "only_reasoning"),
        ({"content": "", "tool_calls": [], "finish_reason": "tool_calls"}, "odd_answer"),
    ],
)
def test_an_answer_that_is_not_there_is_an_error_unless_its_token_ids_are(
    bench: Bench, said: dict[str, Any], reason: str
) -> None:
    odd = lambda body: {"role": "assistant", "content": "fine", **(said if "17" in str(body["messages"]) else {})}  # noqa: E731
    with serve(Simulated(owner="someone", answer=odd)) as (engine,):
        rows = bench.answers(prompts(30), engine.engine.url)
    assert statuses(rows) == {f"id-{n}": "error" if n == 17 else "success" for n in range(30)}
    assert rows[17]["reason"] == reason
    with serve(Simulated(owner="vllm", answer=odd)) as (engine,):
        (row,) = bench_again(bench).answers([prompt("id-17", "row 17")], engine.engine.url)
    assert (row["status"], row["token_ids"]) == ("success", [[0]])


def bench_again(bench: Bench) -> Bench:
    """Return a bench with nothing published yet."""
    return type(bench)(bench.folder / "again")


def test_a_cut_prompt_is_an_error_and_never_trained_on(reading: Callable[[TargetReader], Bench]) -> None:
    long = prompt("long", "row " + "word " * 100)
    bench = reading(Reader())
    with serve(Simulated(window=60)) as (engine,):
        artifact = bench.regenerate(bench.publish([*prompts(30), long]), bench.placement(engine.engine.url))
    assert (artifact.counts["success"], artifact.counts["prompt_drifted"]) == (30, 1)
    assert artifact.counts["bad"] == {"prompt_drifted": 1}
    assert "1 rows answered to another prompt" in bench.heard.lines[-1]


def test_a_conversation_goes_no_further_after_a_turn_whose_prompt_was_cut(
    reading: Callable[[TargetReader], Bench],
) -> None:
    bench = reading(Reader())
    with serve(Simulated(window=60)) as (engine,):
        (row,) = bench.answers([prompt("a", "row 1", "row " + "word " * 100, "row 3")], engine.engine.url)
        assert len(engine.engine.row_bodies) == 2
    assert row["error"].startswith("the engine read 60 tokens of a prompt that has 110: it cut it")
    assert (row["status"], row["generated"]) == ("error", [])


@pytest.mark.parametrize(
    "error", [TypeError("Can only get item pairs from a mapping."), KeyError("x"), RecursionError()]
)
def test_a_row_that_cannot_be_rendered_costs_one_row_and_no_question(
    reading: Callable[[TargetReader], Bench], error: Exception
) -> None:
    """As a template does that goes through the arguments of a call, and gets text."""

    class Picky(Reader):
        def prompt_ids(self, messages: Sequence[Mapping[str, Any]], **told: Any) -> list[int]:
            if "row 17" in messages[-1]["content"]:
                raise error
            return super().prompt_ids(messages, **told)

    bench = reading(Picky())
    with serve(Simulated()) as (engine,):
        rows = bench.answers(prompts(30), engine.engine.url)
        assert not [body for body in engine.engine.row_bodies if "17" in str(body["messages"])]
    assert statuses(rows) == {f"id-{n}": "error" if n == 17 else "success" for n in range(30)}
    assert rows[17]["reason"] == "template_refuses"
    assert type(error).__name__ in rows[17]["error"]


def test_a_row_that_breaks_what_nobody_foresaw_costs_one_row(bench: Bench) -> None:
    """A recorded call without a function, say."""
    odd = prompt("odd", "row 1", "row 2")
    odd["messages"][1]["tool_calls"] = [{"name": "weather"}]
    with serve(Simulated()) as (engine,):
        rows = bench.answers([*prompts(30), odd], engine.engine.url)
    assert (rows[-1]["status"], rows[-1]["reason"], rows[-1]["error"]) == (
        "error",
        "odd_answer",
        "KeyError: 'function'",
    )
    assert len(statuses(rows)) == 31


@pytest.mark.parametrize("error", [MemoryError(), OSError("no space left"), RuntimeError("a bug")])
def test_what_is_no_rows_fault_ends_the_run_as_it_is_and_in_no_group(
    reading: Callable[[TargetReader], Bench], error: Exception
) -> None:
    class Sick(Reader):
        def prompt_ids(self, messages: Sequence[Mapping[str, Any]], **told: Any) -> list[int]:
            if "row 17" in messages[-1]["content"]:
                raise error
            return super().prompt_ids(messages, **told)

    bench = reading(Sick())
    with serve(Simulated()) as (engine,), pytest.raises(type(error)) as caught:
        bench.answers(prompts(30), engine.engine.url)
    assert caught.value is error


def test_too_many_bad_rows_end_the_run_and_a_higher_share_goes_on_without_asking_again(bench: Bench) -> None:
    ref = bench.publish(prompts(200))
    with serve(Simulated(fault=every(4, "400"))) as (engine,):
        with pytest.raises(BadRowsError, match=r"regenerate\.bad_share allows 0\.05 of them") as caught:
            bench.regenerate(ref, bench.placement(engine.engine.url))
        assert "refused" in str(caught.value)
        assert "prompt of 9000 tokens is too long" in str(caught.value)
        with pytest.raises(BadRowsError):  # the rows that are there count
            bench.regenerate(ref, bench.placement(engine.engine.url))
        assert engine.engine.rows < 2 * 20 + 20
        bench.spec = bench.spec.but(bad_share=0.3)
        artifact = bench.regenerate(ref, bench.placement(engine.engine.url))
        assert engine.engine.rows <= 200 + 2 * 20  # but for what was under way when the runs ended
    assert (artifact.counts["success"], artifact.counts["error"]) == (150, 50)


def test_bad_rows_of_committed_parts_count_too(bench: Bench) -> None:
    """Of two parts with two of ten bad each, and of a ledger with two of five."""
    ref = bench.publish(prompts(40))
    bench.spec = bench.spec.but(bad_share=1.0)
    out = bench.out(ref)
    book = bench.book(ref, out)
    for number, (part, row) in enumerate(book.todo()):
        is_bad = number % 10 < 2
        book.finish(part, failed(row["id"], "too long", reason="refused") if is_bad else answer(row["id"]))
        if number == 24:
            break
    for part in book.take_complete(keep_errors=False):
        book.commit(part)
    book.close()
    bench.spec = bench.spec.but(bad_share=0.03)
    again = bench.book(ref, out)
    with pytest.raises(BadRowsError, match="4 of 20 rows") as caught:
        next(again.todo())
    again.close()
    assert "refused" in str(caught.value)
    bench.spec = bench.spec.but(bad_share=0.06)
    again = bench.book(ref, out)
    with pytest.raises(BadRowsError, match="6 of 25 rows"):  # with those of the ledger
        next(again.todo())
    again.close()


def test_bad_rows_that_come_back_first_do_not_end_a_run_of_good_ones(bench: Bench) -> None:
    """Refusals come at once, answers take long: rows under way count as good until they are known.

    Of 100 rows 5 may be bad, and three deviations more while they come: 5 + 3 * 2.18 = 11.5.
    """
    ref = bench.publish(prompts(100))
    book = bench.book(ref, bench.out(ref))
    rows = list(book.todo())
    for part, row in rows[:11]:
        book.finish(part, failed(row["id"], "too long", reason="refused"))
    with pytest.raises(BadRowsError, match="12 of 100 rows"):
        book.finish(rows[11][0], failed(rows[11][1]["id"], "too long", reason="refused"))
    book.close()


def test_failures_that_can_pass_and_skips_are_no_bad_rows(bench: Bench) -> None:
    ref = bench.publish(prompts(30))
    bench.spec = bench.spec.but(bad_share=0.0)
    book = bench.book(ref, bench.out(ref))
    for number, (part, row) in enumerate(book.todo()):
        told = failed(row["id"], "out of memory")
        book.finish(part, told if number % 2 else {**told, "status": "skipped"}, can_pass=bool(number % 2))
    book.check()
    book.close()


def test_at_the_end_all_rows_are_judged_once_more(bench: Bench) -> None:
    """Of fewer than twenty rows nothing is said; when there are twenty, no bad one may be left to say it."""
    ref = bench.publish(prompts(20))
    book = bench.book(ref, bench.out(ref))
    for number, (part, row) in enumerate(book.todo()):
        book.finish(part, answer(row["id"]) if number == 19 else failed(row["id"], "too long", reason="refused"))
    with pytest.raises(BadRowsError, match="19 of 20 rows"):
        book.check()
    book.close()


def test_every_endpoint_that_asks_to_be_left_alone_for_a_day_ends_the_run_at_once(bench: Bench) -> None:
    ref = bench.publish(prompts(30))
    with serve(Simulated(fault=only("17", "quota"))) as (engine,):
        with pytest.raises(EngineError, match=r"asks to be left alone, at least until .*daily quota.*the same command"):
            bench.regenerate(ref, bench.placement(engine.engine.url))
        told = [line for line in bench.heard.lines if "asks to be left alone until" in line]
        assert len(told) == 1
        assert "daily quota" in told[0]
        asked = engine.engine.rows
        engine.engine.fault = lambda number, text: None
        artifact = bench.regenerate(ref, bench.placement(engine.engine.url))
        assert engine.engine.rows <= asked + 20
    assert artifact.counts["success"] == 30


def test_one_endpoint_that_asks_for_a_day_is_left_alone_and_the_others_answer(bench: Bench) -> None:
    quota = Simulated(fault=lambda number, text: "quota")
    with serve(quota, Simulated()) as (spent, well):
        rows = bench.answers(prompts(60), spent.engine.url, well.engine.url)
    assert set(statuses(rows).values()) == {"success"}
    assert quota.rows <= 8  # what was sent to it before it said so


def test_a_quota_that_is_used_up_before_the_first_row_is_told_and_waited_for_by_nobody(bench: Bench) -> None:
    told = pytest.raises(EngineError, match=r"asks to be left alone until .*\(.*daily quota\)\); the same command")
    with serve(Simulated(everywhere="quota")) as (engine,), told:
        bench.answers(prompts(3), engine.engine.url)
    with serve(Simulated(everywhere="quota"), Simulated()) as (spent, well):
        rows = bench_again(bench).answers(prompts(30), spent.engine.url, well.engine.url)
    assert set(statuses(rows).values()) == {"success"}


def test_a_fault_of_all_rows_that_no_probe_sees_ends_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.engines.patience.PATIENCE_SECONDS", 0.3)
    told = pytest.raises(AnswersError, match=r"no endpoint answered for 0 s .*'gave_up'.*0 of 30 rows are kept")
    with serve(Simulated(fault=lambda number, text: "unknown reason")) as (engine,), told:
        bench.answers(prompts(30), engine.engine.url)
    assert len([line for line in bench.heard.lines if "is down" in line]) == 1
    assert not [line for line in bench.heard.lines if line.endswith("/v1 is back")]
