"""The import arrows: deployments -> flows -> tasks -> infra -> deepspec, and the house rules inside."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.given.targets.tiny import write_target

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("deployments", "cli", "flows", "tasks", "infra", "deepspec")
"""Each may import rightwards only."""

STAGE_ROOMS = frozenset({"prepare", "regenerate", "cache", "train", "export", "evaluate", "benchmark", "release"})
TABLES = frozenset({"deepspec/stages.py", "deepspec/catalog.py", "deepspec/plan/"})
"""What may know all stage rooms: the table and what reads it."""

MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the tests ask of a module."""

    imports: list[str]
    """Dotted names, anywhere in it."""
    attributes: set[str]
    texts: set[str]
    trusts: bool
    """Whether `trust_remote_code` is anything but False."""
    calls: set[str]
    """Last names of what is called."""
    types: tuple[str, ...]
    """Names that it gives to classes, and at its top to types made of others."""


@cache
def facts(path: Path) -> Facts:
    """Return what is in a module, which is parsed once for all tests."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    words = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"]
    return Facts(
        imports=[name for node in nodes for name in imported(node, path)],
        attributes={node.attr for node in nodes if isinstance(node, ast.Attribute)},
        texts={node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)},
        trusts=any(ast.unparse(word.value) != "False" for word in words),
        calls={call.attr for call in called if isinstance(call, ast.Attribute)}
        | {call.id for call in called if isinstance(call, ast.Name)},
        types=types_of(nodes, path),
    )


def types_of(nodes: list[ast.AST], path: Path) -> tuple[str, ...]:
    """Return the names of classes and of aliases; options of commands, which are typed so, are neither."""
    classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    tops = [] if name_of(path).startswith("cli/") else nodes[0].body  # type: ignore[attr-defined]
    targets = [target for node in tops if isinstance(node, ast.Assign) for target in node.targets]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return (*classes, *(name for name in names if re.fullmatch(r"[A-Z]+[a-z]\w*", name)))


def imported(node: ast.AST, path: Path) -> list[str]:
    """Return the dotted names that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}: relative import"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(path: Path) -> list[str]:
    """Return the dotted names that a module imports, anywhere in it."""
    return facts(path).imports


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_point_one_way(path: Path) -> None:
    layer = name_of(path).split("/")[0]
    forbidden = set(LAYERS[: LAYERS.index(layer)])
    assert not forbidden & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("deepspec/")], ids=name_of)
def test_the_library_knows_nothing_of_prefect_or_the_environment(path: Path) -> None:
    assert "prefect" not in {name.split(".")[0] for name in imports(path)}
    assert not facts(path).attributes & {"environ", "getenv"}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("deepspec/")], ids=name_of)
def test_a_stage_room_never_imports_another(path: Path) -> None:
    name = name_of(path)
    if any(name.startswith(table) for table in TABLES):
        return
    own = name.split("/")[1]
    rooms = {part[1] for found in imports(path) if (part := found.split("."))[0] == "deepspec" and len(part) > 1}
    assert not (rooms & STAGE_ROOMS) - {own}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if name_of(path).startswith("deepspec/models/")], ids=name_of
)
def test_models_never_name_a_family(path: Path) -> None:
    assert not facts(path).texts & {"llama", "qwen3_moe", "gemma3", "gemma4", "gpt_oss"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle_is_ever_read(path: Path) -> None:
    assert "pickle" not in {name.split(".")[0] for name in imports(path)}
    assert "torch.load(" not in path.read_text()
    assert not facts(path).trusts


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_terminal_prints(path: Path) -> None:
    """What is printed elsewhere would be read as markup, or would not be shown as it was meant."""
    if name_of(path) == "infra/terminal.py":
        return
    assert "rich" not in {name.split(".")[0] for name in imports(path)}
    assert not {"print", "echo", "secho"} & facts(path).calls


def twice(types: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return the names that are given more than once, with the modules that give them."""
    homes = defaultdict(list)
    for module, names in types.items():
        for name in names:
            homes[name].append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_a_name_of_a_type_means_one_thing() -> None:
    """Whoever searches for a class finds it, and nothing else of its name."""
    assert twice({name_of(path): facts(path).types for path in MODULES}) == {}


def test_a_name_that_is_given_twice_is_found() -> None:
    first, second = (ROOT / "deepspec" / name for name in ("first.py", "second.py"))
    trees = {
        first: "class Step: ...\nclass Row: ...",
        second: "Step = tuple[int, int]\nSTEPS = 1\ndef late():\n    class _Row: ...",
    }
    found = {name_of(path): types_of(list(ast.walk(ast.parse(text))), path) for path, text in trees.items()}
    assert found["deepspec/second.py"] == ("_Row", "Step")
    assert twice(found) == {"Step": ["deepspec/first.py", "deepspec/second.py"]}


def test_flows_and_specs_do_not_load_torch() -> None:
    code = "import sys, cli.main, flows.draft, deepspec.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_checks_do_not_load_torch(tmp_path: Path) -> None:
    """They look in a process of their own: this one has torch, to make the target."""
    write_target(tmp_path)
    look = (
        "import sys, pathlib; from flows.choices import Choices, choose_site; from infra.known import known; "
        "from deepspec.plan.checks import outcomes; "
        "plan = Choices(target=sys.argv[1], dataset='demo', benchmarks_dir='demo').plan; "
        "found = outcomes(known(plan, choose_site(sys.argv[1] + '/store'))); "
        "assert {each.state for each in found} == {'ok'}, found; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", look, str(tmp_path)], cwd=ROOT, check=False).returncode == 0


def test_what_is_named_is_looked_for_before_torch_is_loaded(tmp_path: Path) -> None:
    """A name that is mistyped is said at once, not after the five seconds that torch takes."""
    (tmp_path / "empty").mkdir()
    look = (
        "import contextlib, io, sys; from cli.main import main\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv, told = ['deepspec', *words.split()], io.StringIO()\n"
        "    with contextlib.redirect_stdout(told):\n"
        "        try: main()\n"
        "        except SystemExit as end: assert end.code == 2, (words, end.code)\n"
        "    assert 'torch' not in sys.modules, words"
    )
    commands = (
        "inspect ./nowhere",
        "inspect empty",
        "inspect empty --target nowhere",
        "parity nothing",
        "parity ./nowhere",
        "parity empty",
        "parity empty --target nowhere",
        "cache verify nothing",
        "cache stat nothing",
    )
    known = {**os.environ, "PYTHONPATH": str(ROOT), "DEEPSPEC_ROOT": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", look, *commands], cwd=tmp_path, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "empty/config.json does not exist" in done.stderr
    assert "called 'draft/nothing'" in done.stderr
