"""What the options about engines, keys and errors become: a placement and engines to start."""

from pathlib import Path
from typing import Any

import pytest
from prefect import Flow

from deepspec.checkpoint.options import check_objective, check_recipe
from deepspec.errors import SpecError, UnknownNameError
from deepspec.formats.recipe import TRAITS, AlgorithmName
from deepspec.plan import presets
from deepspec.plan.plan import Plan
from flows.choices import Choices, choose_site, managed_engines, named_endpoints
from flows.draft import build_draft
from flows.stages import STAGE_FLOWS
from infra.engines.managed import ManagedEngines

URLS = ["http://127.0.0.1:8000/v1", "https://engine.example/v1"]


def test_endpoints_share_a_model_and_the_name_of_a_key() -> None:
    placement = choose_site(None, named_endpoints(URLS, "tiny", key_env="TINY_KEY"), keep_errors=True).placement
    assert [(one.url, one.model, one.key_variable) for one in placement.endpoints] == [
        (url, "tiny", "TINY_KEY") for url in URLS
    ]
    assert placement.keep_errors


def test_a_key_in_a_secret_block_reaches_the_child_under_a_name_of_its_own() -> None:
    (endpoint,) = named_endpoints(URLS[:1], "tiny", key_block="our-engines")
    assert endpoint.key_variable == "DEEPSPEC_KEY_OUR_ENGINES"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"urls": URLS, "model": None}, "--endpoint needs --model"),
        ({"urls": ["localhost:8000"], "model": "m"}, "URL is not one; wanted http://HOST:PORT/v1"),
        ({"urls": ["http://me:hunter2@host/v1"], "model": "m"}, "holds a user or password; give keys by name"),
        ({"urls": URLS, "model": "m", "key_env": "A", "key_block": "b"}, "has two names"),
    ],
)
def test_what_makes_no_sense_is_said_without_the_values(told: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        named_endpoints(**told)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_engines_are_started_where_none_are_named() -> None:
    engines = managed_engines("vllm", gpus=["0,1", "2,3"], arguments="--dtype bfloat16")
    assert engines == ManagedEngines(kind="vllm", gpus=("0,1", "2,3"), arguments="--dtype bfloat16")
    assert choose_site(engines=engines).engines == engines
    assert managed_engines(None) == choose_site().engines == ManagedEngines()
    with pytest.raises(UnknownNameError, match=r"unknown engine 'ollama'; known: llama\.cpp, sglang"):
        managed_engines("ollama")
    with pytest.raises(SpecError, match="--engine starts engines and --endpoint names running ones"):
        choose_site(None, named_endpoints(URLS, "tiny"), engines)


@pytest.mark.parametrize("flow", [build_draft, *STAGE_FLOWS.values()], ids=lambda flow: flow.name)
def test_the_plan_that_a_command_checked_is_the_one_that_its_flow_runs(
    flow: Flow[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect validates what a flow is given, and hands on the same choices: they have their plan."""
    made, build = [], presets.build_plan

    def noted(*told: Any) -> Plan:
        made.append(told)
        return build(*told)

    monkeypatch.setattr(presets, "build_plan", noted)
    choices = Choices(target="smollm2-135m", overrides=("train.steps=7",))
    plan = choices.plan
    given = flow.validate_parameters({"choices": choices, "site": choose_site()})
    assert given["choices"].plan is plan
    assert plan.train.steps == 7
    assert len(made) == 1


def test_a_plan_stays_with_its_choices_and_is_no_part_of_them() -> None:
    """Others have another, equal ones are equal, and a deployment is sent what was said alone."""
    choices, same = Choices(overrides=("train.steps=7",)), Choices(overrides=("train.steps=7",))
    sent = choices.model_dump_json()
    assert choices.plan.train.steps == 7
    assert (choices, hash(choices), choices.model_dump_json()) == (same, hash(same), sent)
    assert Choices.model_validate_json(sent).plan == choices.plan
    assert choices.but(overrides=("train.steps=8",)).plan.train.steps == 8


@pytest.mark.parametrize("algorithm", TRAITS)
@pytest.mark.parametrize("size", presets.names("sizes"))
@pytest.mark.parametrize("how", ["algorithm", "override"])
def test_a_size_brings_no_algorithm_what_it_has_not(size: str, algorithm: AlgorithmName, how: str) -> None:
    told = {"algorithm": algorithm} if how == "algorithm" else {"overrides": (f"train.draft.algorithm={algorithm}",)}
    train = Choices.model_validate({"size": size, **told}).plan.train
    check_recipe(train.draft)
    check_objective(algorithm, train.objective)
    usual, traits = type(train.draft).model_fields["block_size"].default, TRAITS[algorithm]
    assert (train.draft.block_size != usual) == traits.masked
    assert (train.draft.markov_rank == 128) == traits.heads


@pytest.mark.parametrize(
    ("algorithm", "field", "told"),
    [
        ("eagle3", "train.draft.block_size=4", "block_size 4: an eagle3 draft proposes token by token"),
        ("dflash", "train.draft.markov_rank=8", "markov_rank 8: a dflash draft has no Markov head"),
        ("mtp", "train.objective.num_anchors=9", "num_anchors 9: an mtp draft is trained at every position"),
    ],
)
def test_what_is_asked_for_all_the_same_is_refused(algorithm: AlgorithmName, field: str, told: str) -> None:
    train = Choices(size="laptop", algorithm=algorithm, overrides=(field,)).plan.train

    def asked() -> None:
        check_recipe(train.draft)
        check_objective(algorithm, train.objective)

    with pytest.raises(SpecError, match=told):
        asked()


def test_an_algorithm_that_is_unknown_is_named() -> None:
    with pytest.raises(SpecError, match=r"train\.draft\.algorithm: Input should be 'dspark', "):
        _ = Choices(size="laptop", overrides=("train.draft.algorithm=eagle9",)).plan


@pytest.mark.parametrize("override", ["train.draft=eagle3", "train=1", "train.draft={algorithm: [a]}"])
def test_an_override_of_another_form_is_refused_as_such(override: str) -> None:
    with pytest.raises(SpecError, match=r"train"):
        _ = Choices(size="laptop", overrides=(override,)).plan


@pytest.mark.parametrize("text", ["train:", "train: {draft: }"])
def test_a_size_of_ones_own_may_say_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    assert Choices(size=str(tmp_path / "own.yaml"), algorithm="eagle3").plan.train.draft.algorithm == "eagle3"


def test_what_a_size_of_ones_own_asks_for_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: {objective: {ttt_length: 5}}")
    assert Choices(size=str(tmp_path / "own.yaml")).plan.train.objective.ttt_length == 5
