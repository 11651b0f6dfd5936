"""`plan`, `doctor`, the first look of a command and the first task of a run know the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cli import show
from cli.doctor import examine as doctor
from deepspec.errors import DeepSpecError, InputError
from deepspec.formats.tensor_heads import POINTER
from flows.choices import Choices
from infra.site import Site
from tasks.resolve import Begun, begun
from tests.given.targets.tiny import with_tokens
from tests.plan.placed import FIELDS, choices, edit, questions, site

Change = Callable[[Path], object]


def _write(name: str, data: bytes | str) -> Change:
    return lambda place: (place / "target" / name).write_bytes(data.encode() if isinstance(data, str) else data)


def _drop_layer(place: Path) -> None:
    path = place / "target" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".layers.3." not in name}
    save_file(tensors, path, metadata={"format": "pt"})


def _smaller(place: Path) -> None:
    path = place / "target" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = torch.zeros(200, 32)
    save_file(tensors, path, metadata={"format": "pt"})


def _cut(place: Path) -> None:
    path = place / "target" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _shards(place: Path) -> None:
    path = place / "target" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    placed = dict.fromkeys(tensors, "1.safetensors") | {"model.norm.weight": "2.safetensors"}
    (place / "target" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    save_file({k: v for k, v in tensors.items() if placed[k].startswith("1")}, place / "target" / "1.safetensors")


def _gone(name: str) -> Change:
    return lambda place: (place / "target" / name).unlink()


def _config(**changes: Any) -> Change:
    return lambda place: edit(place / "target" / "config.json", **changes)


HARMLESS: dict[str, Change] = {
    "nothing": lambda place: None,
    "a shorter context": _config(max_position_embeddings=511),
    "no generation config": _gone("generation_config.json"),
    "a file that is not ours": _write("notes.txt", "x"),
}
HARMFUL: dict[str, Change] = {
    "weights as a pointer": _write("model.safetensors", POINTER + b"v1\n"),
    "tokenizer as a pointer": _write("tokenizer.json", POINTER + b"v1\n"),
    "config as a pointer": _write("config.json", POINTER + b"v1\n"),
    "weights cut off": _cut,
    "a shard gone": _shards,
    "a layer gone": _drop_layer,
    "a smaller embedding": _smaller,
    "weights gone": _gone("model.safetensors"),
    "config gone": _gone("config.json"),
    "config as a list": _write("config.json", "[]"),
    "another type": _config(model_type="mystery"),
    "no heads": _config(num_attention_heads=0),
    "heads as text": _config(num_attention_heads="many"),
    "a context without room": _config(max_position_embeddings=40),
    "more tokens": lambda place: with_tokens(place / "target", *(f"<|{n}|>" for n in range(24))),
    "no template": _gone("chat_template.jinja"),
    "a broken template": _write("chat_template.jinja", "{% if %}"),
    "a template that loses text": _write("chat_template.jinja", "hello"),
    "questions too long": lambda place: questions(place, 600, 700),
    "an end token that is none": _write("generation_config.json", '{"eos_token_id": "<|im_end|>"}'),
    "end tokens that are none": _write("generation_config.json", '{"eos_token_id": []}'),
    "questions as a pointer": lambda place: (place / "benchmarks" / "own.jsonl").write_bytes(POINTER),
    "no benchmarks": lambda place: shutil.rmtree(place / "benchmarks"),
}


def verdict(call: Callable[[], Any]) -> str:
    try:
        call()
    except DeepSpecError as error:
        return f"{type(error).__name__}: {error}"
    return "passes"


def all_verdicts(place: Path, chosen: Choices, where: Site) -> set[str]:
    """Return what plan, a command's first look, and the first task of a run say."""
    calls = (
        lambda: show.plan(chosen.plan, where),
        lambda: show.check_input(chosen.plan, where),
        lambda: begun(chosen.plan, where),
    )
    return {verdict(call) for call in calls}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    changes=st.lists(st.sampled_from([*HARMLESS, *HARMFUL]), max_size=2, unique=True),
    fields=st.lists(
        st.sampled_from([*FIELDS, "train.steps=3", "cache.layers=[-1,4]"]),
        max_size=2,
        unique_by=lambda field: field.partition("=")[0],
    ),
    tracker=st.sampled_from([(), ("tensorboard",), ("tensorbord",)]),
)
def test_what_a_run_refuses_a_plan_refuses_and_nothing_else(
    place: Path, original: Path, changes: list[str], fields: list[str], tracker: tuple[str, ...]
) -> None:
    shutil.rmtree(place / "target")
    shutil.copytree(original, place / "target")
    (place / "benchmarks").mkdir(exist_ok=True)
    questions(place, 10, 20, 30)
    for name in sorted(changes, key=lambda name: name in HARMFUL):  # what is harmless mends nothing
        change = {**HARMLESS, **HARMFUL}[name]
        if not verdict_of_change(change, place):
            return
    chosen = choices(place, *fields)
    found = (
        all_verdicts(place, chosen, site(place, trackers=tracker))
        if verdict(lambda: chosen.plan) == "passes"
        else {"-"}
    )
    assert len(found) == 1, found
    harmed = set(changes) & set(HARMFUL) or set(fields) & set(FIELDS) or tracker == ("tensorbord",)
    assert (found == {"passes"}) == (not harmed)


def verdict_of_change(change: Change, place: Path) -> bool:
    """Make a change, unless one before it took away what it changes."""
    try:
        change(place)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False
    return True


@pytest.mark.parametrize("name", HARMFUL)
def test_each_harm_is_one_line_for_plan_and_run_and_a_row_for_doctor(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    HARMFUL[name](place)
    (found,) = all_verdicts(place, choices(place), site(place))
    assert found != "passes"
    assert "\n" not in found
    with pytest.raises(InputError, match="see the table above"):
        doctor(choices(place, answers=None), site(place))
    assert "failed" in capsys.readouterr().out


def test_begun_knows_the_device_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--device cuda: torch sees no card here"):
        begun(choices(place).plan, site(place, device="cuda"))
    run = begun(choices(place).plan, site(place, device="auto"))
    assert isinstance(run, Begun)
    assert run.site.placement.device == "cpu"
    assert run.told[0].startswith("--device auto is cpu: ")
