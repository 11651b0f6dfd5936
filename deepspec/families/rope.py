"""Rope parameters as configs have named them over the years, read into one form."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from deepspec.errors import TargetError, UnknownNameError
from deepspec.families.shape import Rope, RopeKind

Config = Mapping[str, Any]

_DYNAMIC = "dynamic"


def rope(config: Config) -> Rope:
    """Return the rope of a config's full-attention layers.

    Read are `rope_parameters` (flat, or one entry per layer type), and the older `rope_theta` with `rope_scaling`. A
    dynamic rope is plain up to `max_position_embeddings`, beyond which nothing here reads: it is read as a plain one.

    Raises:
        UnknownNameError: the kind is not one that drafts can have.
        TargetError: the kind lacks a value that it needs.
    """
    values = _parameters(config)
    kind = str(values.get("rope_type") or values.get("type") or "default")
    kind = {"deepseek_yarn": "yarn", _DYNAMIC: "default"}.get(kind, kind)
    if is_dynamic(config):
        values = {key: value for key, value in values.items() if key != "factor"}
    if kind not in get_args(RopeKind):
        raise UnknownNameError("rope type", kind, get_args(RopeKind))
    return Rope(
        kind=kind,  # type: ignore[arg-type]  # checked in the line above
        theta=float(_first(values, config, "rope_theta", 10000.0)),
        factor=_factor(kind, values, config),
        rotary_share=float(_first(values, config, "partial_rotary_factor", 1.0)),
        original_positions=_original_positions(kind, values, config),
        low_freq_factor=float(_or(values, "low_freq_factor", 1.0)),
        high_freq_factor=float(_or(values, "high_freq_factor", 4.0)),
        beta_fast=float(_or(values, "beta_fast", 32.0)),
        beta_slow=float(_or(values, "beta_slow", 1.0)),
        truncate=bool(_or(values, "truncate", True)),
        attention_factor=_attention_factor(kind, values, config),
    )


def is_dynamic(config: Config) -> bool:
    """Return whether frequencies change with the length of a text, once it is longer than the config's positions."""
    values = _parameters(config)
    return (values.get("rope_type") or values.get("type")) == _DYNAMIC


def rope_keys(rope: Rope) -> dict[str, Any]:
    """Return a rope in all the names by which readers of a config.json look for it, each of them whole.

    Some know `rope_parameters` alone, older ones `rope_theta` and `rope_scaling`, and take a plain rope of theta 10,000
    where these are missing. `attn_factor` is that of engines, beside the one that they compute of `factor`.
    """
    values = rope_parameters(rope)
    own = _mscale(rope.factor, 1.0)
    if rope.kind == "yarn" and not math.isclose(rope.attention_factor, own, rel_tol=1e-6):
        values["attn_factor"] = rope.attention_factor / own
    scaling = {key: value for key, value in values.items() if key not in ("rope_theta", "partial_rotary_factor")}
    partial = {key: values[key] for key in ("partial_rotary_factor",) if key in values}
    plain = rope.kind == "default"
    return {
        "rope_parameters": values, "rope_theta": rope.theta, "rope_scaling": None if plain else scaling, **partial,
    }  # fmt: skip


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """Return a rope as the `rope_parameters` of a config.json; `rope` reads the same again."""
    values: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.rotary_share != 1.0:
        values["partial_rotary_factor"] = rope.rotary_share
    if rope.kind not in ("default", "proportional") or rope.factor != 1.0:
        values["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_positions
    if rope.kind == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        values["attention_factor"] = rope.attention_factor
    return values


def _parameters(config: Config) -> Config:
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    full = values.get("full_attention")
    return full if isinstance(full, Mapping) else values


def _or(values: Config, key: str, default: Any) -> Any:
    value = values.get(key)
    return default if value is None else value


def _first(values: Config, config: Config, key: str, default: Any) -> Any:
    return _or(values, key, _or(config, key, default))


def _factor(kind: str, values: Config, config: Config) -> float:
    if values.get("factor") is not None:
        return float(values["factor"])
    if kind == "yarn":
        original = _original_positions(kind, values, config)
        return float(config["max_position_embeddings"]) / float(original or 1)
    if kind in ("linear", "llama3"):
        raise TargetError(f"rope of type {kind!r} has no 'factor'; add it to rope_parameters in config.json")
    return 1.0


def _original_positions(kind: str, values: Config, config: Config) -> int | None:
    if kind not in ("llama3", "yarn"):
        return None
    return int(_first(values, config, "original_max_position_embeddings", config["max_position_embeddings"]))


def _attention_factor(kind: str, values: Config, config: Config) -> float:
    """Return YaRN's factor on cos and sin: given, or 0.1·ln(factor) + 1, or the ratio of two mscales."""
    if kind != "yarn":
        return 1.0
    if values.get("attention_factor") is not None:
        return float(values["attention_factor"])
    factor = _factor(kind, values, config)
    if values.get("attn_factor") is not None:
        return float(values["attn_factor"]) * _mscale(factor, 1.0)
    if values.get("mscale") and values.get("mscale_all_dim"):
        return _mscale(factor, values["mscale"]) / _mscale(factor, values["mscale_all_dim"])
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
