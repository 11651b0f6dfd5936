"""What a plan may ask of an engine that gives states, and what its cache is called by."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.doctor import _states_engine
from deepspec.cache.spec import CacheOptions, CacheSpec
from deepspec.errors import EngineError, TargetError
from deepspec.placement import Endpoint
from deepspec.plan.checks import CHECKS, outcomes
from deepspec.stages import STAGES, address
from deepspec.target.heads import checkpoint_dtype
from deepspec.train.spec import TrainSpec
from infra.children.stage import _engines
from infra.engines.states import staging_folder
from infra.known import known
from tasks.resolve import versioned
from tests.given.engines.prompts import TARGET
from tests.given.heard import Heard
from tests.plan.placed import choices, edit, refused, site

THERE = (Endpoint(url="http://127.0.0.1:9/v1", model="target"),)


def seen(place: Path, *overrides: str, only: str | None = None, **placed: Any) -> str:
    plan = choices(place, *overrides).plan
    found = {each.name: each for each in outcomes(known(plan, site(place, **placed), only=only))}
    return found["states"].detail


def test_transformers_computes_states_unless_an_engine_is_named(place: Path) -> None:
    assert "states" in CHECKS
    assert seen(place) == "transformers, in this process"
    assert seen(place, "cache.states=vllm") == "vllm: an engine that the run starts"
    assert seen(place, "cache.states=vllm", endpoints=THERE) == "vllm: 1 endpoints"


def test_min_p_is_not_asked_of_an_engine_that_ignores_it(place: Path) -> None:
    told = ("cache.states=vllm", "regenerate.sampling.min_p=0.1")
    assert "ignores min_p; make the answers first" in seen(place, *told, endpoints=THERE)
    assert seen(place, *told) == "vllm: an engine that the run starts"  # regeneration starts one of its own
    assert seen(place, *told, endpoints=THERE, only="cache") == "vllm: 1 endpoints"


LIVE = ("train.source=engine", "cache.codec=none")


def test_training_on_states_as_they_are_made_needs_engines_that_run(place: Path) -> None:
    assert seen(place, *LIVE, endpoints=THERE) == "vllm, while the draft is trained: 1 endpoints"
    assert seen(place, *LIVE, only="cache") == "engines, while the draft is trained"
    assert "they run beside training, on cards or machines of their own" in seen(place, *LIVE)
    asked = seen(place, *LIVE, "regenerate.sampling.min_p=0.1", endpoints=THERE)
    assert "train.source=engine with the same --endpoint: a vLLM that gives states ignores min_p" in asked


@pytest.mark.parametrize(("overrides", "message"), [
    (("train.source=engine",), "train.source=engine computes the states while it trains"),
    (("train.keep_states=1GB",), "are of an engine; set train.source=engine"),
    (("train.engine_version=0.32.0",), "are of an engine; set train.source=engine"),
    ((*LIVE, "train.keep_states=much"), "keep_states"),
    ((*LIVE, "train.keep_states=-5"), "keep_states"),
    (("cache.states=vllm", "cache.codec=none"), "cache.codec=none stores no states"),
    (("cache.states=vllm", "train.source=online"), "train.source=online computes the states"),
    (("cache.engine_version=0.32.0",), "are of an engine; set cache.states=vllm"),
    (("cache.engine_quantization=fp8",), "are of an engine; set cache.states=vllm"),
    (("cache.states=torch",), "transformers"),
    (("cache.states=sglang",), "states of SGLang are not taken: its stock form sends them as JSON numbers"),
    (("cache.states=sglang", "cache.while_answering=true"), "without the last layer; set cache.states=vllm"),
])  # fmt: skip
def test_what_cannot_be_is_refused(place: Path, overrides: tuple[str, ...], message: str) -> None:
    assert message in refused(place, *overrides)


def test_an_engine_and_its_version_and_quantisation_are_part_of_a_cache_and_old_addresses_stay() -> None:
    plain = CacheSpec(target=TARGET)
    engine = plain.but(states="vllm", engine_version="0.32.0")
    several = [
        plain,
        engine,
        engine.but(engine_version="0.33.0"),
        engine.but(engine_quantization="fp8"),
        engine.but(dtype="bfloat16"),
    ]
    assert len({address(STAGES["cache"], spec, {"answers": "a"}) for spec in several}) == len(several)
    assert plain.identity() == {"target": TARGET.identity()}
    assert (plain.engine_tokens, engine.engine_tokens) == (0, CacheOptions().max_length)


def test_an_engine_is_part_of_a_draft_that_is_trained_on_its_states_and_what_is_kept_is_not() -> None:
    plain = TrainSpec()
    engine = plain.but(source="engine", engine_version="0.32.0")
    several = [plain, engine, engine.but(engine_version="0.33.0"), engine.but(engine_quantization="fp8")]
    addresses = [address(STAGES["train"], spec, {"target_cache": "c"}) for spec in several]
    assert len(set(addresses)) == len(several)
    assert plain.identity() == {}
    kept = engine.but(keep_states="200GB")
    assert kept.keep_states == 200 * 10**9
    assert address(STAGES["train"], kept, {"target_cache": "c"}) == addresses[1]


def test_training_is_told_the_version_of_the_engines_that_it_asks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.resolve.engine_version", lambda urls: f"0.32.0 of {urls}")
    plan = choices(place, *LIVE).plan
    asked = versioned(plan, site(place, endpoints=THERE))
    assert asked.train.engine_version == "0.32.0 of ['http://127.0.0.1:9/v1']"
    assert asked.cache == plan.cache
    assert versioned(plan, site(place)) is plan
    told = choices(place, *LIVE, "train.engine_version=0.31.0").plan
    assert versioned(told, site(place, endpoints=THERE)).train.engine_version == "0.31.0"


def test_a_run_asks_which_version_it_is_unless_the_plan_says_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.resolve.engine_version", lambda urls: f"0.32.0 of {urls}")
    plan = choices(place, "cache.states=vllm").plan
    assert versioned(plan, site(place)).cache.engine_version == "0.32.0 of []"
    asked = versioned(plan, site(place, endpoints=THERE)).cache.engine_version
    assert asked == "0.32.0 of ['http://127.0.0.1:9/v1']"
    told = choices(place, "cache.states=vllm", "cache.engine_version=0.31.0").plan
    assert versioned(told, site(place)).cache.engine_version == "0.31.0"
    plain = choices(place).plan
    assert versioned(plain, site(place)) is plain


def test_a_stage_that_is_not_told_the_version_is_one_line(place: Path) -> None:
    with pytest.raises(EngineError, match=r"set cache\.engine_version"):
        versioned(choices(place, "cache.states=vllm").plan, site(place, endpoints=THERE))


@pytest.mark.parametrize(
    ("told", "wanted"), [("bfloat16", "bfloat16"), ("torch.float16", "float16"), (None, "float32")]
)
def test_the_precision_of_a_checkpoint_is_what_its_config_says_or_its_embedding(
    place: Path, told: str | None, wanted: str
) -> None:
    config = json.loads((place / "target" / "config.json").read_text())
    edit(place / "target" / "config.json", **dict.fromkeys({"dtype", "torch_dtype"} & config.keys(), told))
    assert checkpoint_dtype(place / "target") == wanted


def test_a_precision_that_states_are_not_captured_in_is_refused(place: Path) -> None:
    edit(place / "target" / "config.json", dtype="float8_e4m3fn")
    with pytest.raises(TargetError, match=r"its precision is float8_e4m3fn; set cache\.dtype"):
        checkpoint_dtype(place / "target")


def test_doctor_asks_the_engine_of_states_for_its_version(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.doctor.engine_version", lambda urls: "0.32.0")
    plan = choices(place, "cache.states=vllm").plan
    assert _states_engine(plan, site(place)).startswith("vllm 0.32.0; whether it gives what is wanted is proven")


def test_a_stage_starts_vllm_for_states_and_the_folder_that_it_writes_to_is_gone_after(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    @contextmanager
    def start(engines: object, served: object, folder: Path) -> Iterator[tuple[Endpoint, ...]]:
        started.update(engines=engines, served=served)
        staging_folder(place).mkdir()
        yield THERE

    monkeypatch.setattr("infra.engines.states._SHARED_MEMORY", place / "shm")
    (place / "shm").mkdir()
    monkeypatch.setattr("infra.children.stage.start_engines", start)
    spec = CacheSpec(target=TARGET, states="vllm", engine_version="0.32.0", max_length=100)
    here = site(place).model_copy(update={"folder": place / "target"})
    work = here.work(STAGES["cache"], spec, {}, Heard())
    with _engines(work, here, place / "job") as placement:
        assert placement.endpoints == THERE
    assert started["engines"].kind == "vllm"
    assert f'"shared_storage_path":"{staging_folder(place)}"' in started["engines"].arguments
    assert started["served"].context == 101
    assert list((place / "shm").iterdir()) == []
    plain = here.work(STAGES["cache"], CacheSpec(target=TARGET), {}, Heard())
    with _engines(plain, here, place / "job") as placement:
        assert placement.endpoints == ()
