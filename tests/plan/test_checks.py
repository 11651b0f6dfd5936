"""What can be known is known before anything is spent: one table of checks."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from deepspec.cache.spec import CacheSpec
from deepspec.chat.template import ChatTemplate
from deepspec.errors import InputError
from deepspec.formats.tensor_heads import POINTER
from deepspec.plan.checks import CHECKS, examine, outcomes
from deepspec.plan.rules.machine import TRACKERS
from infra.known import known
from tasks.resolve import begun
from tests.given.targets.tiny import IM_END, with_tokens
from tests.plan.placed import FIELDS, choices, edit, questions, refused, site, told


def test_a_plan_that_can_be_run_passes_every_check(place: Path) -> None:
    found = outcomes(known(choices(place).plan, site(place)))
    assert [each.name for each in found] == list(CHECKS)
    assert {each.state for each in found} == {"ok"}


def test_files_of_a_folder_that_lie_deeper_are_told_of(place: Path) -> None:
    (place / "mine" / "more").mkdir(parents=True)
    for name in ("a.jsonl", "more/b.jsonl"):
        (place / "mine" / name).write_text('{"prompt": "What is two plus two?"}\n')
    lines = told(place, dataset=None, prompts=(str(place / "mine"),))
    assert [line for line in lines if "more/b.jsonl first); name these, too" in line] == list(lines[:1])


@pytest.mark.parametrize("override", FIELDS)
def test_a_field_that_cannot_be_is_refused_by_name(place: Path, override: str) -> None:
    assert FIELDS[override] in refused(place, override)


def test_a_prompt_of_one_token_is_room_enough(place: Path) -> None:
    """531 positions hold 503 tokens of an answer, 7 + 1 of a last round, and a prompt of 19 and one byte."""
    questions(place, 1)
    edit(place / "target" / "config.json", max_position_embeddings=503 + 8 + 20)
    assert "samples are cut at 531" in told(place, "benchmark.max_new_tokens=522", "evaluate.max_new_tokens=503")[0]
    assert "no prompt has room" in refused(place, "benchmark.max_new_tokens=523")
    served = ("benchmark.serve.loads=[1]", "benchmark.serve.contexts=[511]", "benchmark.serve.max_tokens=20")
    assert "benchmark.serve asks for prompts of 511 and answers of 20" in refused(place, *served)
    assert "none of its 1 questions fits the 19 tokens" in refused(place, "evaluate.max_new_tokens=504")


@pytest.mark.parametrize("only", ["prepare", "cache", "train", "export", "release"])
def test_answers_without_room_hold_no_stage_up_that_asks_nothing(place: Path, only: str) -> None:
    plan = choices(place, "evaluate.max_new_tokens=600", "benchmark.max_new_tokens=504", "cache.max_length=64").plan
    assert examine(known(plan, site(place), only=only)) == (
        "the target reads 512 tokens, evaluate.max_new_tokens is 600 and 8 more are kept for a proposal: no prompt has "
        "room; lower it before evaluate",
        "the target reads 512 tokens, benchmark.max_new_tokens is 504 and 8 more are kept for a proposal: no prompt "
        "has room; lower it before benchmark",
    )


def test_answers_without_room_end_the_stage_that_asks_for_them(place: Path) -> None:
    plan = choices(place, "evaluate.max_new_tokens=600").plan
    for only in ("evaluate", None):
        with pytest.raises(InputError, match=r"evaluate\.max_new_tokens is 600 .* lower it$"):
            examine(known(plan, site(place), only=only))
    assert "lower it before evaluate" in examine(known(plan, site(place), only="benchmark"))[-1]


def test_a_release_is_reevaluated_by_settings_of_its_own(place: Path) -> None:
    plan = choices(place, "evaluate.max_new_tokens=600", "cache.max_length=64").plan
    assert examine(known(plan, site(place), only="reevaluate")) == ()
    assert begun(plan, site(place), "reevaluate").told == ()


def test_an_option_that_an_algorithm_has_not_is_refused_whether_the_target_is_there_or_not(place: Path) -> None:
    asked = {"train.draft.block_size=4": "block_size 4: an eagle3 ", "train.objective.num_anchors=9": "num_anchors 9: "}
    for override, message in asked.items():
        assert message in refused(place, override, algorithm="eagle3")
    away = ("train.draft.block_size=4", "target.model=some/model")
    assert "block_size 4: an eagle3 draft" in refused(place, *away, algorithm="eagle3")


def test_eagle3_needs_no_mask_token(place: Path) -> None:
    told(place, "train.mask_token_id=999999", algorithm="eagle3")
    with_tokens(place / "target", *(f"<|more_{n}|>" for n in range(4)))  # every row has its token
    told(place, algorithm="eagle3")
    (place / "target" / "tokenizer.json").write_text(
        (place / "target" / "tokenizer.json").read_text().replace("<|mask|>", "<|none|>")
    )
    assert "choose one with --set train.mask_token_id=ID" in refused(place, algorithm="dspark")


@pytest.mark.parametrize(("overrides", "asked"), [
    (("train.keep=best",), "train.keep=best look at"),
    (("train.patience=2",), "train.patience=2 look at"),
    (("train.keep=best", "train.patience=1"), "train.patience=1 and train.keep=best look at"),
])  # fmt: skip
def test_what_judges_needs_something_to_judge_by(place: Path, overrides: tuple[str, ...], asked: str) -> None:
    told(place, *overrides)
    for nothing in ("prepare.splits.validation=0", "cache.splits=[train]"):
        message = refused(place, *overrides, nothing)
        assert "there is nothing to judge by" in message
        assert asked in message


def test_lengths_that_the_target_cuts_are_told(place: Path) -> None:
    lines = told(place, "regenerate.sampling.max_tokens=512", "cache.max_length=4096")
    assert lines == (
        "the target reads 512 tokens, cache.max_length is 4096: samples are cut at 512 and counted",
        "the target reads 512 tokens, regenerate.sampling.max_tokens is 512: the engine cuts answers earlier",
    )
    assert told(place, "cache.max_length=512") == ()


def test_a_context_that_no_prompt_can_have_is_told(place: Path) -> None:
    """512 positions less 32 of the answer and 8 of a round leave 472."""
    assert told(place, "evaluate.contexts=[100,472]", "cache.max_length=64") == ()
    assert told(place, "evaluate.contexts=[100,473]", "cache.max_length=64") == (
        "evaluate.contexts 473: the target has room for prompts of 472 tokens; its questions are not asked",
    )


def test_masks_of_positions_by_positions_are_told_where_samples_may_be_long(place: Path) -> None:
    edit(place / "target" / "config.json", max_position_embeddings=32768)
    asked = ("cache.layers=[0,1,2]", "train.draft.shape=target")  # of which engines have nothing to say
    lines = told(place, "cache.max_length=32768", *asked, algorithm="eagle3")
    assert lines == (
        "cache.max_length is 32768: on a CPU a step of eagle3 on a sample as long holds masks of 1.1 GB and more; "
        "lower it, or train a block draft",
    )
    assert told(place, "cache.max_length=32768", algorithm="dflash") == ()
    assert told(place, "cache.max_length=16384", *asked, algorithm="eagle3") == ()


def test_the_spec_says_where_samples_are_cut(place: Path) -> None:
    def length(*overrides: str) -> int:
        run = begun(choices(place, *overrides).plan, site(place))
        return CacheSpec.model_validate(run.resolved.specs["cache"]).max_length

    assert (length(), length("cache.max_length=513"), length("cache.max_length=100")) == (512, 512, 100)


def test_questions_without_room_are_told_or_refused(place: Path) -> None:
    """512 positions less 400 of the answer and 8 of a round leave 104; the frame of a question takes 19 of them."""
    questions(place, 85, 86, 200)
    lines = told(place, "evaluate.max_new_tokens=400", "cache.max_length=64")
    assert lines == (
        "benchmark own: 2 of 3 questions are longer than the 104 tokens that the target has for a prompt; they are not "
        "asked",
    )
    questions(place, 86, 200)
    assert "none of its 2 questions fits the 104 tokens" in refused(place, "evaluate.max_new_tokens=400")
    assert told(place, "evaluate.max_new_tokens=399", "cache.max_length=64")[0].startswith("benchmark own: 1 of 2")


def test_only_questions_that_could_be_too_long_are_tokenised(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plan = choices(place, "evaluate.max_new_tokens=400").plan
    seen = known(plan, site(place))
    original = ChatTemplate.prompt_ids

    def noted(chat: ChatTemplate, messages: Any, **told: Any) -> list[int]:
        asked.append(len(messages[0]["content"]))
        return original(chat, messages, **told)

    monkeypatch.setattr(ChatTemplate, "prompt_ids", noted)
    questions(place, 10, 84, 85, 86)
    examine(seen)
    assert [length for length in asked if length > 9] == [85, 86]


def test_benchmark_files_that_cannot_be_read_are_refused(place: Path) -> None:
    (place / "benchmarks" / "own.jsonl").write_text('{"question": "x"}\n')
    assert "own.jsonl:1: wanted" in refused(place)


def test_several_things_are_told_at_once(place: Path) -> None:
    (place / "target" / "chat_template.jinja").write_text("{{")
    message = refused(place, "cache.layers=[9]", "train.keep=best", "prepare.splits.validation=0")
    assert message.startswith("3 things are in the way:\n")
    assert all(part in message for part in ("chat template cannot", "cannot capture layers", "nothing to judge by"))


def test_one_fault_is_told_once(place: Path) -> None:
    (place / "target" / "model.safetensors").write_bytes(POINTER + b"v1\n")
    assert "things are in the way" not in refused(place)
    states = {each.name: each.state for each in outcomes(known(choices(place).plan, site(place)))}
    assert (states["target"], states["tokenizer"], states["context"]) == ("failed", "skipped", "skipped")


def test_trackers_are_those_of_accelerate_and_installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(TRACKERS) == set(map(str, LOGGER_TYPE_TO_CLASS))
    plan = choices(place).plan
    examine(known(plan, site(place, trackers=("tensorboard",))))
    with pytest.raises(InputError, match="unknown tracker 'tensorbord'; known: aim, "):
        examine(known(plan, site(place, trackers=("tensorbord",))))
    with pytest.raises(InputError, match="--tracker swanlab: its package is not installed; run: pip install swanlab"):
        examine(known(plan, site(place, trackers=("swanlab",))))


def test_processes_share_a_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = choices(place).plan
    examine(known(plan, site(place, processes=2)))
    with pytest.raises(InputError, match=r"3 processes share a step of train\.global_batch=2"):
        examine(known(plan, site(place, processes=3)))
    monkeypatch.setenv("DEEPSPEC_NODES", "2")
    monkeypatch.setenv("DEEPSPEC_FIRST_NODE", "a:1")
    with pytest.raises(InputError, match="4 processes share"):
        examine(known(plan, site(place, processes=2)))
    monkeypatch.setenv("DEEPSPEC_NODES", "two")
    with pytest.raises(InputError, match="DEEPSPEC_NODES is 'two'; wanted a whole number"):
        known(plan, site(place))


def test_a_target_that_is_not_here_yet_is_no_reason_to_refuse(place: Path) -> None:
    plan = choices(place, target="some/model").plan
    assert examine(known(plan, site(place))) == ()
    with pytest.raises(InputError, match="neither a folder here nor a hub id ORG/MODEL"):
        examine(known(choices(place, target="a/b/c").plan, site(place)))


@pytest.mark.parametrize("option", ["prompts", "answers"])
def test_rows_that_are_a_pointer_are_named(place: Path, option: str) -> None:
    rows = place / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n')
    named = {"prompts": (str(rows),)} if option == "prompts" else {"answers": str(rows)}
    told(place, dataset=None, **named)
    rows.write_bytes(POINTER + b"v1\n")
    assert "rows.jsonl is a git-lfs pointer, not the file itself" in refused(place, dataset=None, **named)


def test_a_template_that_ends_no_answer_is_told_where_answers_are_rendered(place: Path) -> None:
    edit(place / "target" / "generation_config.json", eos_token_id=[66])
    (line,) = told(place, "cache.max_length=64")
    assert line.startswith("answers without token ids of the engine cannot be trained on: target ")
    assert "its chat template ends an answer with none of its stop tokens (" in line
    edit(place / "target" / "generation_config.json", eos_token_id=[9999])  # no token at all
    assert "answers without token ids" in told(place, "cache.max_length=64")[0]
    edit(place / "target" / "generation_config.json", eos_token_id=[66, IM_END])
    assert told(place, "cache.max_length=64") == ()


def test_a_target_without_an_end_token_is_refused(place: Path) -> None:
    edit(place / "target" / "generation_config.json", eos_token_id=None)
    told(place)
    edit(place / "target" / "tokenizer_config.json", eos_token=None)
    assert "names no end token; set eos_token_id in its generation_config.json" in refused(place)


BLOCK = (
    "an eagle3 draft with a qwen3 block cannot be written for sglang and llama.cpp, which have a llama block, nor "
    "served and measured by them; with train.draft.shape=target, which is such a block, they can"
)


def test_an_eagle3_draft_that_no_engine_here_can_serve_is_told_before_it_is_trained(place: Path) -> None:
    four, three = "cache.layers=[-1,0,1,2]", "cache.layers=[0,1,2]"
    assert told(place, four, "cache.max_length=64", algorithm="eagle3") == (
        "an eagle3 draft of 4 captured layers cannot be written for llama.cpp, which has 3, nor served and measured by "
        "it; with cache.layers=[-1, 1, 2] it can",
        BLOCK,
    )
    assert told(place, three, "cache.max_length=64", algorithm="eagle3") == (BLOCK,)
    assert told(place, four, "cache.max_length=64", algorithm="dflash") == (
        "a dflash draft that reads the embedding (layer -1) cannot be written for sglang, whose blocks read decoder "
        "layers alone; with others in cache.layers it can",
    )
    assert told(place, three, "cache.max_length=64", algorithm="dflash") == ()
    assert told(place, four, "cache.max_length=64", "export.forms=[vllm]", algorithm="eagle3") == ()
    line, _ = told(place, "cache.layers=[0,1]", "cache.max_length=64", algorithm="eagle3")
    assert line.endswith(
        "of 2 captured layers cannot be written for llama.cpp, which has 3, nor served and measured by it"
    )


def test_a_block_that_engines_have_for_eagle3_is_advised_where_the_target_has_it(place: Path) -> None:
    three = ("cache.layers=[0,1,2]", "cache.max_length=64")
    assert told(place, *three, "train.draft.shape=target", algorithm="eagle3") == ()
    edit(place / "target" / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    assert told(place, *three, algorithm="eagle3") == (BLOCK.partition(";")[0],)
