"""Defaults of the installed transformers' config classes, read from its source: importing one would load torch.

A config.json may leave out what its class fills in, and name sizes as its authors did; the class says both, as plain
assignments. What a class computes (`__post_init__`) is not read.
"""

import ast
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_BASE = "PreTrainedConfig"


@cache
def defaults_of(model_type: str) -> dict[str, Any]:
    """Return field -> default of the config class of a `model_type`; empty where the installed version has none."""
    kind = _class_of(model_type)
    return {} if kind is None else _fields(*kind)


@cache
def names_of(model_type: str) -> dict[str, str]:
    """Return common name -> the type's own name of a field: `{"hidden_size": "n_embd", …}`."""
    kind = _class_of(model_type)
    return {} if kind is None else dict(_assigned(*kind).get("attribute_map") or {})


@cache
def theta_of(model_type: str) -> float | None:
    """Return the rope theta that a class sets for configs which name none; None: it sets none of its own."""
    kind = _class_of(model_type)
    found = None if kind is None else _assigned(*kind).get("default_theta")
    return float(found) if isinstance(found, int | float) else None


@cache
def causal_types() -> dict[str, str]:
    """Return `model_type` -> class, of all types that `AutoModelForCausalLM` loads or whose text part it is."""
    return _table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


@cache
def image_types() -> dict[str, str]:
    """Return `model_type` -> class, of all types that `AutoModelForImageTextToText` loads."""
    return _table("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")


def _table(name: str) -> dict[str, str]:
    for node in _parsed(_folder() / "auto" / "modeling_auto.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name and isinstance(node.value, ast.Call):
            return dict(ast.literal_eval(node.value.args[0]))
    return {}


def _folder() -> Path:
    found = find_spec("transformers")
    return Path(str(found.origin)).parent / "models" if found is not None else Path("transformers")


def _class_of(model_type: str) -> tuple[Path, str] | None:
    """Return file and name of the config class of a `model_type`."""
    sign = f'model_type = "{model_type}"'
    for path in sorted(_folder().glob("*/configuration_*.py")):
        if sign in path.read_text(encoding="utf-8"):
            for node in _parsed(path).body:
                if isinstance(node, ast.ClassDef) and dict(_literals(node)).get("model_type") == model_type:
                    return path, node.name
    return None


def _fields(path: Path, name: str) -> dict[str, Any]:
    """Return the annotated fields of a class and its bases; methods and plain assignments are not fields."""
    node = _class(path, name)
    if node is None:
        return {}
    fields: dict[str, Any] = {}
    for base in node.bases:
        fields |= _fields(*_origin(path, ast.unparse(base)))
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            fields |= _literal(statement.target, statement.value)
    return fields


def _assigned(path: Path, name: str) -> dict[str, Any]:
    node = _class(path, name)
    if node is None:
        return {}
    inherited: dict[str, Any] = {}
    for base in node.bases:
        inherited |= _assigned(*_origin(path, ast.unparse(base)))
    return inherited | dict(_literals(node))


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            yield from _literal(statement.targets[0], statement.value).items()


def _literal(target: ast.expr, value: ast.expr) -> dict[str, Any]:
    try:
        return {ast.unparse(target): _value(value)}
    except ValueError:  # an expression: what it gives is not known here
        return {}


def _value(node: ast.expr) -> Any:
    """Return a literal, or a product of literals, as `4096 * 32` is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _value(node.left) * _value(node.right)
    return ast.literal_eval(node)


def _class(path: Path, name: str) -> ast.ClassDef | None:
    if name == _BASE or not path.is_file():
        return None
    found = (node for node in _parsed(path).body if isinstance(node, ast.ClassDef) and node.name == name)
    return next(found, None)


def _origin(path: Path, name: str) -> tuple[Path, str]:
    """Return where a class that a file names is defined: in it, or in the file that it imports it from."""
    for node in _parsed(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            start = path.parents[node.level - 1] if node.level else path.parent
            return start.joinpath(*node.module.split(".")).with_suffix(".py"), name
    return path, name


@cache
def _parsed(path: Path) -> ast.Module:
    text = path.read_text(encoding="utf-8")
    with _undisturbed():
        return ast.parse(text)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Collect no garbage while the block runs, so that no other thread has its turn in the middle of a parse.

    Python before 3.11.8 and 3.12.2 has one count of depth for all threads: where another one parses something
    meanwhile, as it does to format a traceback, this one ends in a SystemError (CPython gh-106905).
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()
