"""What a plan lets pass, the stages' own checks let pass; what these refuse, the plan refused before."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepspec.checkpoint.checks import check_mask_token, check_target
from deepspec.checkpoint.new import new_draft_config
from deepspec.decoding.room import room_of
from deepspec.errors import InputError
from deepspec.families import read_folder
from deepspec.formats.recipe import DraftRecipe, Objective
from deepspec.models.draft import build_draft
from deepspec.plan.checks import examine
from deepspec.plan.plan import Plan
from deepspec.plan.rules.published import apart
from deepspec.proposers.propose import proposer_for
from deepspec.start.fresh import draft_config
from deepspec.target.identity import identify
from deepspec.target.layers import check_layers, default_layers
from deepspec.target.load import Target, load_target, load_template
from deepspec.target.mask_token import mask_token_facts
from deepspec.target.tokens import read_stops
from deepspec.target_cache.facts import CacheFacts
from infra.known import known
from tests.given.targets.tiny import IM_END, with_tokens
from tests.plan.placed import choices, edit, questions, site

CHECKED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def facts_of(plan: Plan, target: Target) -> CacheFacts:
    """Return what the cache stage would say, once it has checked the layers as it does."""
    layers = plan.cache.layers or default_layers(target.num_layers)
    check_layers(layers, target.num_layers)
    return CacheFacts(
        target=identify(target.folder),
        layers=tuple(layers),
        num_layers=target.num_layers,
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        **mask_token_facts(target.tokenizer, target.vocab_size),
        dtype="float32",
        codec="none",
        splits={},
        stored_bytes=0,
        published_bytes=0,
    )


@cache
def loaded(folder: Path) -> Target:
    return load_target(folder)


def go_through_the_stages(plan: Plan, folder: Path) -> None:
    """Make every check that stages make of plan and target, with their own functions.

    Raises:
        InputError: one of them refuses it.
    """
    target = loaded(folder)
    config = draft_config(plan.train, facts_of(plan, target), folder)
    check_target(config, read_folder(folder))
    check_mask_token(config, target.tokenizer)
    model = build_draft(config)
    slots = {stage: proposer_for(model, getattr(plan, stage).slots).slots for stage in ("evaluate", "benchmark")}
    room = room_of(folder, plan.evaluate.max_new_tokens, slots["evaluate"], stage="evaluate", thinking=False).most
    if len(target.template.prompt_ids([{"role": "user", "content": "x"}])) > room:
        raise InputError("no question is asked")


def verdicts(place: Path, *overrides: str, **told: Any) -> tuple[bool, bool, str]:
    """Return whether the plan, and whether the stages let something pass, and what is said."""
    plan, said, found = choices(place, *overrides, **told).plan, [], []
    for call in (
        lambda: examine(known(plan, site(place))), lambda: go_through_the_stages(plan, place / "target")
    ):  # fmt: skip
        try:
            call()
            found.append(True)
        except InputError as error:
            found.append(False)
            said.append(str(error))
    return found[0], found[1], "; ".join(said)


LAYERS = st.lists(st.integers(-2, 6), min_size=1, max_size=3)
NUMBERS = {
    "train.mask_token_id": st.sampled_from([0, 65, 257, 258, 259, 260, 263, 264]),
    "train.draft.draft_vocab_size": st.sampled_from([1, 64, 263, 264, 265]),
    "train.draft.num_layers": st.integers(1, 2),
    "train.draft.block_size": st.integers(1, 9),
    "train.objective.ttt_length": st.integers(1, 9),
    "evaluate.slots": st.integers(1, 9),
    "benchmark.slots": st.integers(1, 9),
    "evaluate.max_new_tokens": st.integers(480, 490),
}
OVERRIDES = st.fixed_dictionaries({}, optional={**NUMBERS, "cache.layers": LAYERS})


@CHECKED
@given(
    overrides=OVERRIDES,
    algorithm=st.sampled_from(["dspark", "dflash", "eagle3"]),
    more=st.sampled_from([0, 4, 5]),
)
@example(overrides={}, algorithm="dspark", more=0)
@example(overrides={"evaluate.slots": 8}, algorithm="dspark", more=0)
@example(overrides={"benchmark.slots": 8}, algorithm="eagle3", more=4)
@example(overrides={"evaluate.max_new_tokens": 484}, algorithm="dspark", more=0)  # 7 + 1 more, and a prompt of 20
@example(overrides={"evaluate.max_new_tokens": 485}, algorithm="dspark", more=0)
def test_what_the_stages_refuse_the_plan_refuses_and_nothing_else(
    variants: dict[int, Path], overrides: dict[str, Any], algorithm: str, more: int
) -> None:
    """`more` tokens of the tokenizer beside its 260; the embedding has 264 rows."""
    told = {"train.draft.num_layers": 1, **overrides}
    words = tuple(f"{name}={value}" for name, value in told.items())
    by_plan, by_stages, said = verdicts(variants[more], *words, algorithm=algorithm)
    assert by_plan == by_stages, said


@pytest.fixture
def variants(place: Path) -> dict[int, Path]:
    """Return a place for each number of tokens that the tokenizer has more: the rest of the rows, or one too many."""
    questions(place, 1)
    found = {0: place}
    for more in (4, 5):
        found[more] = place / f"more{more}"
        shutil.copytree(place / "target", found[more] / "target")
        shutil.copytree(place / "benchmarks", found[more] / "benchmarks")
        with_tokens(found[more] / "target", *(f"<|more_{number}|>" for number in range(more)))
    return found


RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "num_layers": st.integers(1, 2),
        "markov_rank": st.sampled_from([0, 4, 8]),
        "markov_head": st.sampled_from(["vanilla", "gated", "rnn"]),
        "confidence_head": st.booleans(),
        "confidence_with_markov": st.booleans(),
        "block_size": st.sampled_from([4, 7]),
        "shape": st.sampled_from(["qwen3", "target"]),
    },
)
SAME: dict[str, Any] = {"num_layers": 1, "markov_rank": 4}


@CHECKED
@given(first=RECIPES, change=RECIPES)
@example(first={}, change={"block_size": 4})
def test_drafts_of_one_shape_for_a_plan_are_those_that_take_each_others_state(
    original: Path, first: dict[str, Any], change: dict[str, Any]
) -> None:
    target, recipes = read_folder(original), ({**SAME, **first}, {**SAME, **first, **change})
    old, new = (new_draft_config(target, DraftRecipe(**each), (1, 2), 260, Objective()) for each in recipes)
    states = [
        {name: part.shape for name, part in build_draft(each).named_parameters() if part.requires_grad}
        for each in (old, new)
    ]
    assert (states[0] == states[1]) == (not apart(old, new))


ENDS = {
    "several": ([IM_END, 258], {}),
    "one": (IM_END, {}),
    "the tokenizer's": (None, {}),
    "no file": ("gone", {"eos_token_id": [3, IM_END]}),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_tokens_that_end_an_answer_are_those_of_the_loaded_target(place: Path, case: str) -> None:
    told, config = ENDS[case]
    folder = place / "target"
    edit(folder / "config.json", **config)
    edit(folder / "generation_config.json", eos_token_id=told)
    if told == "gone":
        (folder / "generation_config.json").unlink()
    target = load_target(folder)
    assert read_stops(folder, target.tokenizer) == target.stop_ids
    assert IM_END in target.stop_ids
    assert load_template(folder).stop_id == target.template.stop_id == IM_END
