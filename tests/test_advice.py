"""What messages and docstrings advise can be typed: commands, options and fields of the plan that exist.

Every string in the code is read, with `…` where something is put in.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from cli.main import app
from deepspec.plan.plan import Plan
from tests.given.some import some

ROOT = Path(__file__).parents[1]
ROOMS = ("deepspec", "cli", "flows", "tasks", "infra")
COMMAND = re.compile(r"\bdeepspec ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FIELD = re.compile(rf"(?<![\w./-])(?:{'|'.join(Plan.model_fields)})(?:\.[a-z_]+)+(?![\w/-])")

SETTING = re.compile(r"--set ([a-z_]+(?:\.[a-z_]+)*)=")

NO_COMMAND = {
    "deepspec is": "huggingface.py says so when the package is not installed",
    "deepspec on": "speed.json names what was timed: deepspec on transformers …",
}
"""What reads like a command and is a sentence -> which."""
PROGRAMS = {
    "docker": "--shm-size",
    "hf": "--local-dir",
    "infra.engines.llama_cpp": "--name --slots --context",
    "llama-gguf-split": "--merge",
    "llama-server": "--alias --ctx-size --jinja --parallel --spec-type --spec-draft-n-max --spec-draft-p-min",
    "pip": "--no-deps --force-reinstall",
    "prefect": "--pool --watch",
    "sglang": "--context-length --max-running-requests --model-path --speculative-algorithm "
    "--speculative-draft-attention-backend --speculative-draft-model-path "
    "--speculative-dflash-block-size --speculative-dspark-block-size "
    "--speculative-eagle-topk --speculative-num-draft-tokens --speculative-num-steps --tp-size",
    "vllm": "--max-model-len --max-num-seqs --served-model-name --speculative-config --tensor-parallel-size",
}
"""Other programs -> their options that stand in lines to be typed, or that we start them with."""
OTHERS = {option for told in PROGRAMS.values() for option in told.split()}
NO_FIELD = {
    "draft.gguf": "a file",
    "limits.conf": "the same",
    "cache.open": "a cache of keys and values in decoding",
    "cache.advance": "the same",
}
"""What reads like a field and is none -> what it is."""


def literals() -> Iterator[tuple[str, str]]:
    """Yield file:line and text of every string in the code, and every template."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            where = path.relative_to(ROOT)
            yield from ((f"{where}:{line}", text) for line, text in strings(ast.parse(path.read_text("utf-8"))))
        for path in sorted((ROOT / room).rglob("*.j2")):
            yield f"{path.relative_to(ROOT)}", path.read_text("utf-8")


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of the strings below a node; what is put into one is `…`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values),
            )
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    yield from strings(part)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        else:
            yield from strings(node)


LITERALS = list(literals())


def commands() -> Mapping[str, Any]:
    """Return the commands by name."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group.commands


def options(command: Any) -> set[str]:
    """Return the options of a command and of those below it."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for below in getattr(command, "commands", {}).values():
        found |= options(below)
    return found | {"--help"}


def has_field(model: Any, names: list[str]) -> bool:
    """Return whether a model has a field at a path; what is no model of ours has none below it."""
    for name in names:
        kinds = [each for each in (model, *get_args(model)) if isinstance(each, type) and issubclass(each, BaseModel)]
        if not kinds or name not in kinds[0].model_fields:
            return False
        model = kinds[0].model_fields[name].annotation
    return True


def test_commands_that_are_advised_exist() -> None:
    known = commands()
    wrong, seen = [], set()
    for where, text in LITERALS:
        for found in COMMAND.finditer(text):
            name, below = found.groups()
            seen.add(f"deepspec {name}")
            nested = getattr(known.get(name), "commands", None)
            if f"deepspec {name}" not in NO_COMMAND and (
                name not in known or (nested and below and below not in nested)
            ):
                wrong.append(f"{where}: {found[0]}")
    assert wrong == []
    assert NO_COMMAND.keys() <= seen
    assert "deepspec cache" in seen  # the strings are read at all


def test_options_that_are_advised_exist() -> None:
    known = set().union(*map(options, commands().values()))
    found = [(where, option) for where, text in LITERALS if " " in text for option in OPTION.findall(text)]
    assert [f"{where}: {option}" for where, option in found if option not in known | OTHERS] == []
    assert {option for _, option in found} >= OTHERS
    assert not OTHERS & known


def test_fields_that_are_advised_exist() -> None:
    found = [(where, name) for where, text in LITERALS for name in (*FIELD.findall(text), *SETTING.findall(text))]
    wrong = [(where, name) for where, name in found if not has_field(Plan, name.split(".")) and name not in NO_FIELD]
    assert wrong == []
    assert NO_FIELD.keys() <= {name for _, name in found}
    assert "train.mask_token_id" in {name for _, name in found}


def test_what_does_not_exist_is_found() -> None:
    assert list(strings(ast.parse('f"see {a} deepspec verify, {f(\'--nope x\')}"'))) == [
        (1, "see … deepspec verify, …"), (1, "--nope x"),
    ]  # fmt: skip
    assert some(COMMAND.search("see deepspec cache verify, or")).groups() == ("cache", "verify")
    assert FIELD.findall("set train.draft.block_size=4, not train.py, deepspec.train.run or trained.well") == [
        "train.draft.block_size", "train.py",
    ]  # fmt: skip
    assert has_field(Plan, ["train", "draft", "block_size"])
    assert not has_field(Plan, ["train", "blocks"])
    assert not has_field(Plan, ["train", "steps", "more"])
    assert SETTING.findall("--set evaluate.samples=4 --set x=1") == ["evaluate.samples", "x"]
