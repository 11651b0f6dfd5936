"""Functions of the library: what is public is used from outside of its module, and its name means one thing.

Whoever searches for `states_difference` finds the one; whoever changes a private function has only its module to read.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("deepspec", "infra", "tasks", "flows", "cli", "docs", "tests")
"""Whatever can use a function of the library."""
OF_STAGES = frozenset({"run", "run_shard", "shards"})
"""What a stage's room offers, see `deepspec.stages`: found by name, in each of them."""
OF_PAGES = frozenset({"sections", "title", "warnings"})
"""The parts of a page, which every module that makes one offers, and which are asked for by `module.part`."""
BY_NAME = frozenset(
    {
        ("deepspec.attention.triton_own", "read_block"),
        ("deepspec.attention.triton_own", "trace_block"),
        ("deepspec.prepare.resolve", "hub_revision"),
        ("deepspec.regenerate.run", "deadline"),
    }
)
"""What tests take, or put something of their own in the place of, by its name alone."""


@dataclass(frozen=True, slots=True)
class Names:
    """What modules define, and use of each other."""

    homes: Mapping[str, list[str]]
    """Name of a public function at the top of a module -> modules that define one."""
    users: Mapping[tuple[str, str], set[str]] = field(default_factory=dict)
    """(module, name) -> other modules that use it."""
    named: frozenset[tuple[str, str]] = frozenset()
    """(module, name) of whatever a module names itself, its definition aside."""


def names_of(texts: Mapping[str, str], library: str = "deepspec.") -> Names:
    """Return the names of modules, given as dotted name -> source."""
    homes, users, named = defaultdict(list), defaultdict(set), set()
    for module, text in texts.items():
        tree = ast.parse(text)
        named |= {(module, node.id) for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if module.startswith(library):
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                    homes[node.name].append(module)
        for used in used_in(tree, texts):
            users[used].add(module)
    return Names(homes, users, frozenset(named))


def used_in(tree: ast.Module, modules: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield what a module uses of others, as (module, name): `from module import name`, and `module.name`."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (whole := f"{node.module}.{alias.name}") in modules:
                    aliases[alias.asname or alias.name] = whole
                else:
                    yield node.module or "", alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield aliases[node.value.id], node.attr


def room_of(module: str) -> str:
    return "tests" if module.startswith("tests.") else ".".join(module.split(".")[:2])


def shared_names(names: Names) -> dict[str, list[str]]:
    """Return names of functions that another room knows while a third room has a public function of the same name."""
    found = {}
    for name, homes in names.homes.items():
        users = {(home, user) for home in homes for user in names.users.get((home, name), ())}
        abroad = any(room_of(home) != room_of(user) != "tests" for home, user in users)
        if abroad and len({room_of(home) for home in homes}) > 1 and name not in OF_STAGES | OF_PAGES:
            found[name] = homes
    return found


def unused_outside(names: Names) -> list[str]:
    """Return public functions that nothing but their own module uses."""
    return [
        f"{home}.{name}"
        for name, homes in names.homes.items()
        for home in homes
        if not names.users.get((home, name)) and name not in OF_STAGES and (home, name) not in BY_NAME
    ]


def only_in_tests(names: Names) -> list[str]:
    """Return public functions that nothing but tests uses."""
    return [
        f"{home}.{name}"
        for name, homes in names.homes.items()
        for home in homes
        if (home, name) not in names.named and name not in OF_STAGES
        if all(room_of(user) == "tests" for user in names.users.get((home, name), ()))
    ]


def the_code() -> Names:
    paths = [path for layer in CODE for path in sorted((ROOT / layer).rglob("*.py"))]
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return names_of({name: path.read_text(encoding="utf-8") for name, path in dotted.items()}, "deepspec.")


def test_a_function_that_rooms_share_has_its_name_to_itself() -> None:
    assert shared_names(the_code()) == {}


def test_a_public_function_is_used_by_another_module() -> None:
    assert unused_outside(the_code()) == []


def test_no_test_keeps_a_function_alive() -> None:
    assert only_in_tests(the_code()) == []


def test_what_is_looked_for_is_found() -> None:
    names = names_of(
        {
            "deepspec.one.first": "def told(): ...\ndef _own(): ...\ndef alone(): ...",
            "deepspec.two.second": "def told(): ...\ndef tried(): ...",
            "deepspec.two.third": "from deepspec.two.second import told",
            "flows.whole": "from deepspec.one import first\nfirst.told()",
            "tests.test_one": "from deepspec.two.second import tried",
        }
    )
    assert shared_names(names) == {"told": ["deepspec.one.first", "deepspec.two.second"]}
    assert unused_outside(names) == ["deepspec.one.first.alone"]
    assert only_in_tests(names) == ["deepspec.one.first.alone", "deepspec.two.second.tried"]
