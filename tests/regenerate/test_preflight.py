"""An endpoint that is not what the plan names is found before the first row is asked."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from deepspec.asking.reader import TargetReader
from deepspec.asking.sampling import Sampling
from deepspec.errors import EngineError
from tests.given.engines.answering import Simulated, serve
from tests.given.engines.prompts import Bench, prompts


class Reader(TargetReader):
    """Counts as the simulated engine does: words and five more."""

    def __init__(self) -> None:
        super().__init__(None)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], **told: Any) -> list[int]:
        return list(range(sum(len(message["content"].split()) for message in messages) + 5))


@pytest.fixture
def bench_with_reader(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(TargetReader, "of", classmethod(lambda cls, target, placement, day: Reader()))
    return bench


def test_a_wrong_model_is_named(bench: Bench) -> None:
    with serve(Simulated(model="other")) as (engine,):
        with pytest.raises(EngineError, match="serves other, not 'tiny'"):
            bench.answers(prompts(3), engine.engine.url)
        assert engine.engine.bodies == []


def test_a_refused_parameter_is_named(bench: Bench) -> None:
    with serve(Simulated(refuses=frozenset({"min_p"}))) as (engine,):
        with pytest.raises(EngineError, match=r"unknown field min_p.*set the parameter that it names to null"):
            bench.answers(prompts(3), engine.engine.url)
        bench.spec = bench.spec.but(sampling=bench.spec.sampling.but(min_p=None))
        assert len(bench.answers(prompts(3), engine.engine.url)) == 3


def test_another_template_is_found_by_its_token_counts(bench_with_reader: Bench) -> None:
    with serve(Simulated(template_tokens=6)) as (engine,):
        with pytest.raises(EngineError, match="10 tokens of a prompt for which the target's chat template gives 9"):
            bench_with_reader.answers(prompts(3), engine.engine.url)
        assert engine.engine.row_bodies == []


def test_the_targets_own_template_passes(bench_with_reader: Bench) -> None:
    with serve(Simulated()) as (engine,):
        assert len(bench_with_reader.answers(prompts(3), engine.engine.url)) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.8), ("top_k", 20), ("min_p", 0.1), ("repetition_penalty", 1.1), ("presence_penalty", 0.5)],
)
def test_an_ignored_parameter_is_reported(bench: Bench, name: str, value: float) -> None:
    bench.spec = bench.spec.but(sampling=Sampling(max_tokens=16, **{name: value}))
    with serve(Simulated(ignores=frozenset({name}))) as (deaf,):
        if "penalty" in name:
            deaf.engine.answer = lambda body: {"role": "assistant", "content": f"answer {body['temperature']}"}
        bench.answers(prompts(3), deaf.engine.url)
    assert [line for line in bench.heard.lines if f"seems to ignore {name};" in line]


def test_seeds_that_part_after_the_first_word_are_no_sign_of_an_ignored_parameter(bench: Bench) -> None:
    """As vLLM's did at top_k 1, in bf16."""
    bench.spec = bench.spec.but(sampling=Sampling(max_tokens=16, top_k=20))
    with serve(Simulated(answer=lambda body: {"role": "assistant", "content": f"I am {body['seed']}"})) as (engine,):
        bench.answers(prompts(3), engine.engine.url)
    assert not [line for line in bench.heard.lines if "ignore" in line]


def test_an_engine_that_answers_beyond_the_limit_is_reported(bench: Bench) -> None:
    with serve(Simulated(ignores=frozenset({"max_tokens"}))) as (deaf,):
        bench.answers(prompts(3), deaf.engine.url)
    assert [line for line in bench.heard.lines if "seems to ignore max_tokens;" in line]


def test_an_engine_that_heeds_everything_is_not_reported(bench: Bench) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5)
    bench.spec = bench.spec.but(sampling=sampling)
    with serve(Simulated()) as (engine,):
        bench.answers(prompts(3), engine.engine.url)
    assert not [line for line in bench.heard.lines if "ignore" in line]


@pytest.mark.parametrize("name", ["eos_token", "eos", "END_TURN", "stop"])
def test_an_end_is_known_by_many_names_and_kept_by_one(bench: Bench, name: str) -> None:
    with serve(Simulated(stop=name)) as (engine,):
        rows = bench.answers(prompts(3), engine.engine.url)
    assert [row["finish_reasons"] for row in rows] == [["stop"]] * 3


@pytest.mark.parametrize("name", ["gave_up", "", None])
def test_an_end_that_nobody_knows_is_found_before_the_first_row_and_named(bench: Bench, name: str | None) -> None:
    told = pytest.raises(EngineError, match=rf"ends an answer with the reason {name!r}.*a proxy before it")
    with serve(Simulated(stop=name)) as (engine,):
        with told:
            bench.answers(prompts(3), engine.engine.url)
        assert engine.engine.row_bodies == []


def test_an_engine_that_just_shuts_down_is_no_engine_of_unknown_ends(bench: Bench) -> None:
    said = iter(["abort"])

    def answer(body: Mapping[str, Any]) -> dict[str, Any]:
        whole = body["max_tokens"] > 1
        return {"role": "assistant", "content": "fine", "finish_reason": next(said, "stop") if whole else "length"}

    with serve(Simulated(answer=answer), Simulated()) as (ending, well):
        assert len(bench.answers(prompts(3), ending.engine.url, well.engine.url)) == 3
    assert [line for line in bench.heard.lines if "'abort'; it is asked as soon as it does" in line]


def test_a_whole_answer_is_asked_for_that_is_no_longer_than_those_of_rows(bench: Bench) -> None:
    with serve(Simulated()) as (engine,):
        bench.answers(prompts(3), engine.engine.url)
    asked = [body["max_tokens"] for body in engine.engine.bodies if body["messages"][0]["content"] == "Say yes."]
    assert asked == [16]
