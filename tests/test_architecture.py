"""The import arrows: deployments -> flows -> tasks -> infra -> deepspec, and the house rules inside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("deployments", "cli", "flows", "tasks", "infra", "deepspec")
"""Each may import rightwards only."""

STAGE_ROOMS = frozenset({"prepare", "regenerate", "cache", "train", "export", "evaluate", "benchmark", "release"})
TABLES = frozenset({"deepspec/stages.py", "deepspec/catalog.py", "deepspec/plan/"})
"""What may know all stage rooms: the table and what reads it."""

MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Return the dotted names that a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_point_one_way(path):
    layer = name_of(path).split("/")[0]
    forbidden = set(LAYERS[: LAYERS.index(layer)])
    assert not forbidden & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("deepspec/")], ids=name_of)
def test_the_library_knows_nothing_of_prefect_or_the_environment(path):
    assert "prefect" not in {name.split(".")[0] for name in imports(path)}
    attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not attributes & {"environ", "getenv"}


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path).startswith("deepspec/")], ids=name_of)
def test_a_stage_room_never_imports_another(path):
    name = name_of(path)
    if any(name.startswith(table) for table in TABLES):
        return
    own = name.split("/")[1]
    rooms = {part[1] for found in imports(path) if (part := found.split("."))[0] == "deepspec" and len(part) > 1}
    assert not (rooms & STAGE_ROOMS) - {own}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if name_of(path).startswith("deepspec/models/")], ids=name_of
)
def test_models_never_name_a_family(path):
    words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert not words & {"llama", "qwen3_moe", "gemma3", "gemma4", "gpt_oss"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_pickle_is_ever_read(path):
    source = path.read_text()
    assert "pickle" not in {name.split(".")[0] for name in imports(path)}
    assert "torch.load(" not in source
    keywords = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.keyword))
    assert not [word for word in keywords if word.arg == "trust_remote_code" and ast.unparse(word.value) != "False"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_terminal_prints(path):
    """What is printed elsewhere would be read as markup, or would not be shown as it was meant."""
    if name_of(path) == "infra/terminal.py":
        return
    assert "rich" not in {name.split(".")[0] for name in imports(path)}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {"print", "echo", "secho"} & {ast.unparse(call).split(".")[-1] for call in calls}


def test_flows_and_specs_do_not_load_torch():
    code = "import sys, cli.main, flows.draft, deepspec.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_checks_do_not_load_torch(tmp_path):
    """The target is made in a process of its own, for that loads torch."""
    make = "import sys, pathlib; from tests.target.tiny import write_target; write_target(pathlib.Path(sys.argv[1]))"
    look = (
        "import sys, pathlib; from flows.choices import Choices, choose_site; from infra.known import known; "
        "from deepspec.plan.checks import outcomes; "
        "plan = Choices(target=sys.argv[1], dataset='demo', benchmarks_dir='demo').plan(); "
        "found = outcomes(known(plan, choose_site(sys.argv[1] + '/store'))); "
        "assert {each.state for each in found} == {'ok'}, found; sys.exit('torch' in sys.modules)"
    )
    for code in (make, look):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
        assert done.returncode == 0
