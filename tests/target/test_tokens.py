"""Tokenizer and chat template of a target are tried before its weights are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.errors import InputError, TargetError
from deepspec.families import read, read_folder
from deepspec.formats.tensor_heads import POINTER
from deepspec.target.heads import read_target
from deepspec.target.identity import differing, identify, read_template
from deepspec.target.load import load_target
from deepspec.target.source import TargetSource, find_target
from deepspec.target.tokens import check_vocabulary, has_template, read_chat, read_tokenizer
from tests.given.targets.tiny import CHATML, VOCAB, edit, with_tokens, write_target

FREE = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_a_tokenizer_that_fits_is_counted(folder: Path) -> None:
    assert check_vocabulary(read_tokenizer(folder), VOCAB, "t") == "260 tokens, 264 rows in the embedding"


def test_a_tokenizer_beyond_the_embedding_is_refused_by_plan_and_load(folder: Path) -> None:
    with_tokens(folder, *(f"<|extra_{n}|>" for n in range(24)))
    message = (
        r"the tokenizer knows 284 tokens, the embedding has 264 rows \(there is none for <\|extra_10\|>, .* more\)"
    )
    with pytest.raises(TargetError, match=message):
        check_vocabulary(read_tokenizer(folder), VOCAB, "t")
    with pytest.raises(TargetError, match="the tokenizer knows 284 tokens, the embedding has 264 rows"):
        load_target(folder)


def test_one_token_on_the_edge(folder: Path) -> None:
    with_tokens(folder, *(f"<|extra_{n}|>" for n in range(4)))
    assert check_vocabulary(read_tokenizer(folder), VOCAB, "t").startswith("264 tokens")
    with_tokens(folder, *(f"<|extra_{n}|>" for n in range(5)))
    with pytest.raises(TargetError, match="knows 265 tokens, the embedding has 264 rows"):
        check_vocabulary(read_tokenizer(folder), VOCAB, "t")


def test_tokens_for_padding_or_images_need_no_row_unless_the_template_writes_them(folder: Path) -> None:
    """Gemma 3 as text has 262144 rows and a tokenizer that knows one token more, for images."""
    filled = [f"<|extra_{n}|>" for n in range(4)]
    with_tokens(folder, *filled, "<image>", "[PAD]", image_token="<image>", pad_token="[PAD]")
    told = check_vocabulary(read_tokenizer(folder), VOCAB, "t")
    assert told == r"264 rows in the embedding; none for <image>, [PAD], which no conversation may hold"
    load_target(folder)
    (folder / "chat_template.jinja").write_text(CHATML + "<image>")
    with pytest.raises(TargetError, match=r"there is none for <image>\)"):
        check_vocabulary(read_tokenizer(folder), VOCAB, "t")
    with_tokens(folder, *filled, "<end>", eos_token="<end>")
    with pytest.raises(TargetError, match=r"there is none for <end>\)"):
        check_vocabulary(read_tokenizer(folder), VOCAB, "t")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "merges.txt"])
def test_other_forms_of_a_tokenizer_may_be_pointers_too(folder: Path, name: str) -> None:
    (folder / name).write_bytes(POINTER + b"v1\n")
    with pytest.raises(TargetError, match=rf"{name} is a git-lfs pointer"):
        read_tokenizer(folder)


def test_a_gguf_file_may_be_a_pointer_too(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(POINTER + b"v1\n")
    with pytest.raises(TargetError, match=r"x\.gguf is a git-lfs pointer"):
        find_target(TargetSource(model=str(tmp_path / "x.gguf")), tmp_path, "x")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_files_of_the_tokenizer_that_are_pointers_or_no_json_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(POINTER + b"v1\n")
    with pytest.raises(TargetError, match=rf"{name} is a git-lfs pointer"):
        read_tokenizer(folder)
    (folder / name).write_text("[")
    with pytest.raises(TargetError, match=rf"{name} cannot be read: it is not JSON"):
        read_tokenizer(folder)


def test_a_tokenizer_that_is_json_and_none_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TargetError, match=r"its tokenizer cannot be read: .*; fetch or save it again"):
        read_tokenizer(folder)


def test_without_a_fast_tokenizer_nothing_is_known(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert read_tokenizer(folder) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "cannot render one user turn: .*"),
        ("{{ raise_exception('only tools') }}", "cannot render one user turn: only tools"),
        ("{{ messages[0].nothing.deeper }}", "cannot render one user turn: .* has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "cannot render one user turn: ZeroDivisionError"),
        ("{% for k, v in messages[0].content | items %}x{% endfor %}", "cannot render one user turn: TypeError"),
        (
            "{% for part in messages[0].content %}{{ part.words }}{% endfor %}x",
            "leaves out what a user says, it gives 'x'",
        ),
        ("hello", "leaves out what a user says, it gives 'hello'"),
    ],
)
def test_a_template_that_cannot_render_a_turn_is_refused(folder: Path, template: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(TargetError, match=message):
        read_chat(folder, read_tokenizer(folder))


def test_several_named_templates_are_one_target(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert has_template(folder)
    assert read_chat(folder, read_tokenizer(folder)).prompt_ids([{"role": "user", "content": "x"}])
    edit(folder / "tokenizer_config.json", chat_template=named[1:])
    with pytest.raises(TargetError, match="multiple chat templates with no default"):
        read_chat(folder, read_tokenizer(folder))


def test_templates_beside_the_first_one_are_part_of_the_target(folder: Path) -> None:
    alone = identify(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    both = identify(folder)
    assert (both.template != alone.template, both.but(template=alone.template)) == (True, alone)
    assert json.loads(read_template(folder)) == {"default": CHATML, "tool_use": "{{ tools }}"}
    assert read_chat(folder, read_tokenizer(folder)).prompt_ids([{"role": "user", "content": "x"}])


def test_two_targets_are_told_apart_without_their_weights(folder: Path, original: Path) -> None:
    other = identify(original)
    assert differing(folder, other) == []
    edit(folder / "config.json", rope_theta=5.0)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert differing(folder, other) == ["config", "template"]
    assert differing(folder, other, other.but(weights="w")) == ["weights"]


def test_config_and_weights_of_two_models_are_told(folder: Path) -> None:
    assert (read_target(folder).rows, read_target(folder).parameters) == (VOCAB, 64_160)
    edit(folder / "config.json", vocab_size=300)
    with pytest.raises(TargetError, match=r"its embedding is \(264, 32\), its config says \(300, 32\)"):
        read_target(folder)
    edit(folder / "config.json", vocab_size=VOCAB, num_hidden_layers=8)
    with pytest.raises(TargetError, match=r"says 8 layers, its weights have none of layers\.6, layers\.7"):
        read_target(folder)
    edit(folder / "config.json", num_hidden_layers=10**12)
    with pytest.raises(TargetError, match=r"have none of layers\.6, .* and 1 more"):
        read_target(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([
    "model_type", "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings", "rms_norm_eps",
    "intermediate_size", "text_config", "final_logit_softcapping", "layer_types", "per_layer_config",
])  # fmt: skip
MODEL_TYPES = st.sampled_from(["llama", "qwen3", "gemma3_text", "gemma4_text", "gpt_oss", "qwen3_moe"])


@FREE
@given(model_type=MODEL_TYPES, changes=st.dictionaries(KEYS, JSON, max_size=3))
def test_no_config_gives_anything_but_an_input_error(
    original: Path, model_type: object, changes: dict[str, Any]
) -> None:
    config = {**json.loads((original / "config.json").read_text()), "model_type": model_type, **changes}
    try:
        shape = read(config)
    except InputError:
        return
    sizes = (shape.num_layers, shape.vocab_size, shape.max_positions, shape.block.head_dim, shape.block.hidden_size)
    assert all(size >= 1 for size in sizes)


@FREE
@given(value=JSON, name=st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json"]))
def test_no_json_in_a_targets_files_gives_anything_but_an_input_error(
    folder: Path, original: Path, value: object, name: str
) -> None:
    shutil.copyfile(original / name, folder / name)
    told = json.loads((folder / name).read_text())
    for text in (json.dumps(value), json.dumps({**told, **(value if isinstance(value, dict) else {"x": value})})):
        (folder / name).write_text(text)
        for look in (read_folder, read_target, identify, has_template):
            try:
                look(folder)
            except InputError as error:
                assert str(error)  # noqa: PT017 - its class is what matters
