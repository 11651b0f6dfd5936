"""Presets and overrides: small YAML files, each a part of a plan, laid over each other in order.

targets/NAME.yaml    a target; a hub id, a folder or an own YAML file work the same
datasets/NAME.yaml   prompts, benchmarks and counts
sizes/NAME.yaml      how much of everything: `minutes`, `laptop` or `hour`; none: the published sizes
hardware/NAME.yaml   rates and prices for estimates
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deepspec.errors import SpecError, UnknownNameError
from deepspec.plan.cost.given import Hardware
from deepspec.plan.plan import Plan

_Model = TypeVar("_Model", bound=BaseModel)

_HERE = Path(__file__).parent / "presets"


def names(room: str) -> list[str]:
    """Return the names of the presets in a room."""
    return sorted(path.stem for path in (_HERE / room).glob("*.yaml"))


def load(room: str, name: str) -> dict[str, Any]:
    """Return a preset by its name, or the YAML file that the name is the path of.

    Raises:
        UnknownNameError: no preset has that name.
        SpecError: the file is not a YAML mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _HERE / room / f"{name}.yaml"
    if not path.is_file():
        raise UnknownNameError(f"{room.removesuffix('s')} preset", name, names(room))
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: holds {type(value).__name__}, wanted a mapping like the presets of deepspec/plan")
    return value


def target(name: str) -> dict[str, Any]:
    """Return the part of a plan that a target is: a preset, an own YAML file, a folder, or a hub id ORG/MODEL."""
    if name in names("targets") or name.endswith((".yaml", ".yml")):
        return load("targets", name)
    if Path(name).expanduser().exists() or "/" in name:
        return {"target": {"name": Path(name).name.lower(), "model": name}}
    raise UnknownNameError("target (no preset, folder, YAML file or hub id ORG/MODEL)", name, names("targets"))


def hardware(name: str) -> Hardware:
    """Return rates and prices of a machine: a preset, several devices of one (h100x8), or an own YAML file."""
    base, times, count = name.rpartition("x")
    several = times and count.isdecimal() and base in names("hardware")
    value = {**load("hardware", base), "devices": int(count)} if several else load("hardware", name)
    return validated(Hardware, value, f"hardware {name}")


def build_plan(parts: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> Plan:
    """Return the plan that parts of plans and `a.b=value` overrides, later over earlier, add up to.

    Raises:
        SpecError: an unknown key or a value that makes no sense, named with its full path.
    """
    return validated(Plan, laid(parts, overrides), "plan")


def laid(parts: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return what parts and overrides add up to, before anyone has looked whether it is a plan.

    Raises:
        SpecError: an override that is none.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        _merge(merged, part)
    for text in overrides:
        _merge(merged, _override(text))
    return merged


def _override(text: str) -> dict[str, Any]:
    """Return `train.steps=200` as a nested mapping; the value is read as YAML."""
    path, equals, value = text.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise SpecError(f"--set {text!r}: wanted section.field=value, such as train.steps=200")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {text!r}: the value is not YAML: {error}") from error
    for step in reversed(steps):
        nested = {step: nested}
    result: dict[str, Any] = nested
    return result


def _merge(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def validated(model: type[_Model], value: Any, what: str) -> _Model:
    """Return a value as a model.

    Raises:
        SpecError: it is none; the message names the field, never the value that it had.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item), what) for item in error.errors())
        raise SpecError(problems) from None  # the validation error shows values, which may hold a secret


def _problem(error: Mapping[str, Any], what: str) -> str:
    where = ".".join(str(step) for step in error["loc"]) or what
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown; see the fields with: deepspec fields"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
