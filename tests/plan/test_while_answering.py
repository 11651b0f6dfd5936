"""What a plan may ask where states come with the answers, what each stage is told of it, and what it comes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepspec.cache.spec import CacheSpec
from deepspec.placement import Endpoint
from deepspec.plan import presets
from deepspec.plan.budget import answering_lines, plan_estimate
from deepspec.plan.cost.estimate import SPECULATED
from deepspec.plan.plan import Plan
from deepspec.plan.resolve import _while_answering
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.stages import STAGES, address
from deepspec.states.wanted import WhileAnswering
from infra.children.stage import _engines
from infra.known import known
from tests.given.engines.prompts import TARGET
from tests.given.heard import Heard
from tests.plan.placed import choices, refused, site
from tests.plan.test_states import THERE, seen

PASS = ("cache.states=vllm", "cache.while_answering=true")


def test_the_states_of_a_cache_may_come_with_the_answers(place: Path) -> None:
    assert seen(place, *PASS) == "vllm: an engine that the run starts, with the answers"
    assert choices(place, states_while_answering=True).plan.cache == choices(place, *PASS).plan.cache


@pytest.mark.parametrize(("overrides", "message"), [
    (("cache.while_answering=true",), "cache.states=transformers makes them itself; set cache.states=vllm"),
    (("cache.states=vllm", "cache.keep_states=1GB"), "set cache.while_answering=true"),
    ((*PASS, "cache.keep_states=-1"), "keep_states"),
    ((*PASS, "cache.codec=none"), "cache.codec=none stores no states"),
    ((*PASS, "regenerate.sampling.min_p=0.1"), "a vLLM that gives states ignores min_p"),
    ((*PASS, "train.objective.convention=speculators"), "whose states do not come with it; leave them out"),
    ((*PASS, "train.objective.mask_alignment=deepspec"), "whose states do not come with it; leave them out"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(place: Path, overrides: tuple[str, ...], message: str) -> None:
    assert message in refused(place, *overrides)


def test_answers_from_a_file_come_without_states(place: Path) -> None:
    (place / "answers.jsonl").write_text('{"prompt": "x"}\n')
    assert "answers from a file (--answers), which come without states" in refused(
        place, *PASS, dataset=None, answers=str(place / "answers.jsonl")
    )


def test_a_stage_by_itself_is_not_held_up_by_what_others_are_told(place: Path) -> None:
    assert seen(place, *PASS, "regenerate.sampling.min_p=0.1", only="cache").endswith("with the answers")
    assert seen(place, *PASS, "train.objective.convention=speculators", only="regenerate").endswith("with the answers")


def test_answers_are_the_same_answers_and_the_cache_is_another() -> None:
    answers = RegenerateSpec(target=TARGET)
    plain = CacheSpec(target=TARGET, states="vllm", engine_version="0.32.0")
    once = plain.but(while_answering=True)
    states = WhileAnswering.model_validate(once.model_dump(include=set(WhileAnswering.model_fields)))
    places = [address(STAGES["regenerate"], spec, {"prompts": "p"}) for spec in (answers, answers.but(
        while_answering=states.model_dump()))]  # fmt: skip
    assert places[0] == places[1]
    caches = [address(STAGES["cache"], spec, {"answers": "a"}) for spec in (plain, once, once.but(keep_states="1GB"))]
    assert caches[0] != caches[1] == caches[2]


def test_regeneration_is_told_what_the_cache_wants(place: Path) -> None:
    plan = choices(place, *PASS, "cache.engine_version=0.32.0", "cache.layers=[1,3]", "cache.keep_states=2TB").plan
    wanted = WhileAnswering.model_validate(_while_answering(plan))
    assert (wanted.layers, wanted.engine_version, wanted.max_length) == ((1, 3), "0.32.0", plan.cache.max_length)
    assert wanted.keep_states == 2 * 10**12
    assert _while_answering(choices(place, "cache.states=vllm").plan) is None


def test_regeneration_starts_an_engine_that_gives_states_and_takes_whole_answers(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    @contextmanager
    def start(engines: object, served: object, folder: Path) -> Iterator[tuple[Endpoint, ...]]:
        started.update(engines=engines, served=served)
        yield THERE

    monkeypatch.setattr("infra.children.stage.start_engines", start)
    plan = choices(place, *PASS, "cache.max_length=100", "regenerate.sampling.max_tokens=50").plan
    spec = RegenerateSpec.model_validate(
        {**plan.regenerate.model_dump(), "target": TARGET, "while_answering": _while_answering(plan)}
    )
    monkeypatch.setattr("infra.engines.states.PROMPT_ROOM", 200)
    here = site(place).model_copy(update={"folder": place / "target"})
    with _engines(here.work(STAGES["regenerate"], spec, {}, Heard()), here, place / "job") as placement:
        assert placement.endpoints == THERE
    assert started["engines"].kind == "vllm"
    assert "extract_hidden_states" in started["engines"].arguments
    assert started["served"].context == 250


def big(hardware: str, *overrides: str) -> Plan:
    parts = [presets.target("qwen3-4b"), presets.load("datasets", "open-perfectblend")]
    return presets.build_plan(parts, [f"limits.hardware={hardware}", "train.greedy_samples=0", *overrides])


def test_what_is_kept_saves_the_pass_and_answers_take_longer() -> None:
    """On one H100 the pass over 1.24 billion tokens takes 8.7 hours, and writing what it gives 3.5."""
    apart, once = plan_estimate(big("h100")), plan_estimate(big("h100", *PASS))
    assert apart is not None
    assert once is not None
    assert apart.hours["cache"].mid == pytest.approx(8.7, rel=0.02)
    assert once.hours["cache"].mid == pytest.approx(3.5, rel=0.02)
    assert once.hours["regenerate"].high == pytest.approx(apart.hours["regenerate"].high * SPECULATED.high)
    assert once.hours["regenerate"].low == apart.hours["regenerate"].low
    assert (once.hours["train"], once.store_bytes) == (apart.hours["train"], apart.store_bytes)


def test_of_what_does_not_fit_the_pass_is_made() -> None:
    apart, some = plan_estimate(big("h100")), plan_estimate(big("h100", *PASS, "cache.keep_states=9.5TB"))
    assert apart is not None
    assert some is not None
    assert some.hours["cache"].mid == pytest.approx(0.75 * apart.hours["cache"].mid, rel=0.01)  # of 38 TB a quarter


def test_the_plan_says_what_it_saves_and_costs() -> None:
    """States of 6 × 2560 values a token beside 2 × 36 × 8 × 128 of keys and values are 21 %."""
    assert answering_lines(big("h100")) == ()
    saved, cost = answering_lines(big("h100", *PASS))
    assert "the cache takes 3.5 h instead of 8.7 h, its writing" in saved
    assert "states take 21% of room beside keys and values; scratch holds them until they are encoded: 38" in cost
    assert cost.endswith(" TB")
    assert "of which 25% fit (cache.keep_states); the others are asked for again" in answering_lines(
        big("h100", *PASS, "cache.keep_states=9.5TB"))[1]  # fmt: skip


def test_known_is_what_the_flag_says(place: Path) -> None:
    plan = choices(place, states_while_answering=True).plan
    assert known(plan, site(place)).plan.cache.while_answering
